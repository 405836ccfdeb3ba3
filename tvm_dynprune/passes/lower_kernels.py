# SPDX-License-Identifier: Apache-2.0
"""LowerKernels: composite calls become calls of TIR kernels on blocked tensors.

Before::

    y = conv1(x, w, b, mask, open)                 # Composite = "dynprune.conv2d"

After (``indexed``; `lower_conv2d` shows the others)::

    list = R.call_tir(open_list, (open,))          # blocks, count
    y = R.call_tir(conv2d, (x, w_packed, b_packed, list[0], list[1]))

Tensors stay blocked between kernels (`LayoutPlan`); what is no composite runs as plain Relax, with
conversions where the two meet. Weights are packed here, at compile time.
Needs ChooseLowering before it; feeds TVM's own pipeline.
"""

import json
from contextlib import nullcontext

import tvm
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Var, op

from tvm_dynprune.errors import NotLoweredError
from tvm_dynprune.kernels.blocking import Affine, block_channels, unblock_channels
from tvm_dynprune.kernels.open_list import open_list
from tvm_dynprune.passes.composite import SUMS, is_composite
from tvm_dynprune.passes.conv2d_spec import KernelTarget
from tvm_dynprune.passes.dataflow import Functions, operands, result_of, shape_of, substitute
from tvm_dynprune.passes.layout_plan import LayoutPlan, tensor
from tvm_dynprune.passes.lower_conv2d import can_pool, lower_conv2d
from tvm_dynprune.passes.lower_conv2d_window import inner_convolutions, lower_conv2d_window
from tvm_dynprune.passes.lower_group_norm import lower_group_norm
from tvm_dynprune.passes.lower_layer_norm import lower_layer_norm
from tvm_dynprune.passes.lower_resize2d import lower_resize2d
from tvm_dynprune.passes.lower_transposed_conv2d import lower_transposed_conv2d
from tvm_dynprune.passes.lower_window import WINDOWS, lower_global_average, lower_window
from tvm_dynprune.passes.merge_small_kernels import MERGEABLE
from tvm_dynprune.passes.normalisation import normalisation_of

OPAQUE = 8  # TVM's OpPatternKind
KERNEL_CALLS = "kernel_calls"  # attribute of a lowered function: its kernels in order, with layers
_LOWER = {
    **dict.fromkeys(SUMS, lower_conv2d),
    **dict.fromkeys(WINDOWS, lower_window),
    "transposed_conv2d": lower_transposed_conv2d,
    "resize2d": lower_resize2d,
    "layer_norm": lower_layer_norm,
    "group_norm": lower_group_norm,
    "global_average": lower_global_average,
}


@tvm.transform.module_pass(opt_level=0, name="LowerKernels")
class LowerKernels:
    """Lower every composite call.

    Parameters
    ----------
    target
        What kernels depend on of the SoC.
    """

    def __init__(self, target: KernelTarget) -> None:
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = dict(mod.functions_items())
        if not any(is_composite(func) for func in functions.values()):
            return mod
        imported = {gv: f for gv, f in functions.items() if isinstance(f, tvm.tirx.PrimFunc)}
        builder, calls = relax.BlockBuilder(tvm.IRModule(imported)), {}
        for global_var, func in functions.items():
            if isinstance(func, relax.Function) and "global_symbol" in (func.attrs or {}):
                emitter = KernelEmitter(builder, func, functions, self.target)
                emitter.emit_function(global_var.name_hint)
                calls[global_var.name_hint] = json.dumps(emitter.calls)
        lowered = builder.finalize()
        for name, value in calls.items():
            lowered[name] = lowered[name].with_attr(KERNEL_CALLS, value)
        return lowered.with_attrs(dict(mod.attrs)) if mod.attrs else lowered


class KernelEmitter:
    """Emits one function; the lowerings of single kernels call back into it."""

    def __init__(
        self,
        builder: relax.BlockBuilder,
        func: relax.Function,
        functions: Functions,
        target: KernelTarget,
    ) -> None:
        self.builder, self.func, self.target = builder, func, target
        self.plan = LayoutPlan(func, functions, target.lanes)
        self._inner = inner_convolutions(self.plan, target)
        self._blocked: dict[Var, Var] = {}
        self._plain: dict[Var, Expr] = {var: var for var in func.params}
        self._lists: dict[tuple[Var, int], list[Expr]] = {}
        self._layer = ""
        self._decides = False  # whether what is emitted is part of a gate
        # Kernel and layer of each call that is no part of a gate, in order: equal kernels are
        # shared, so names do not tell.
        self.calls: list[tuple[str, str]] = []

    def emit_function(self, name: str) -> None:
        """Emit the whole function under `name`."""
        attributes = {k: v for k, v in self.func.attrs.items() if k != "global_symbol"}
        # TVM forbids If inside a dataflow block.
        conditional = any(
            str(c.attribute("lowering")) == "if" and "open_out" in c.arguments
            for c in self.plan.composites.values()
        )
        with self.builder.function(name, list(self.func.params), attributes):
            with nullcontext() if conditional else self.builder.dataflow():
                for binding in self.plan.flow.bindings:
                    self._emit_binding(binding.var, binding.value)
                result = result_of(self.func)
                output = substitute(result, {v: self.plain(v) for v in operands(result)})
                if not conditional:
                    output = self.builder.emit_output(output)
            self.builder.emit_func_output(output)

    def _emit_binding(self, var: Var, value: Expr) -> None:
        composite = self.plan.composites.get(var)
        self._layer = "" if composite is None else composite.layer
        self._decides = self.plan.decides(var)
        if var in self._blocked or any(var.same_as(inner) for inner in self._inner.values()):
            pass  # what computes its operands, another result of theirs, or its reader does it too
        elif composite is not None and var in self._inner:
            self._layer = self.plan.composites[self._inner[var]].layer
            self._blocked[self.plan.holder(var)] = lower_conv2d_window(self, var, composite)
        elif composite is not None:
            self._blocked[self.plan.holder(var)] = _LOWER[composite.kind](self, var, composite)
        elif var in self.plan.blocked:
            mapping = {operand: self.blocked(operand) for operand in operands(value)}
            self._blocked[var] = self.builder.emit(substitute(value, mapping), var.name)
        elif not isinstance(value, Var | relax.Tuple) or var not in self.plan.flow.outputs:
            mapping = {operand: self.plain(operand) for operand in operands(value)}
            self._plain[var] = self.builder.emit(substitute(value, mapping), var.name)

    def call(self, kernel: tvm.tirx.PrimFunc, name: str, arguments: list[Expr], out: list) -> Var:
        """Emit a call of a kernel; `out` holds the types of the results."""
        global_var = self.add(kernel, name)
        types = out[0] if len(out) == 1 else out
        return self.builder.emit(relax.call_tir(global_var, arguments, types), name)

    def compute(self, var: Var, kernel: tvm.tirx.PrimFunc, name: str, arguments: list[Expr]) -> Var:
        """Emit the call of the kernel that computes `var`, and what it `pools`."""
        result = self.builder.emit(self.computation(var, kernel, name, arguments), name)
        pooling = self.pooling(var)
        if pooling is None:
            return result
        y, pool = (self.builder.emit(relax.TupleGetItem(result, i)) for i in range(2))
        self._blocked[pooling] = pool
        return y

    def computation(
        self, var: Var, kernel: tvm.tirx.PrimFunc, name: str, arguments: list[Expr]
    ) -> relax.Call:
        """The call of the kernel that computes `var`, in the tensor that holds it."""
        results, global_var = [self.plan.holder(var)], self.add(kernel, name)
        pooling = self.pooling(var)
        if pooling is not None:
            results.append(pooling)
        out = [tensor(self.plan.feature_map(result)) for result in results]
        out = out[0] if len(out) == 1 else out
        given = [result for result in results if result in self._blocked]
        if not given:
            return relax.call_tir(global_var, arguments, out)
        places = [len(arguments) + given.index(r) if r in given else -1 for r in results]
        arguments = [*arguments, *(self._blocked[result] for result in given)]
        return relax.call_tir_inplace(global_var, arguments, places, out)

    def write_over(self, var: Var, residual: Var) -> None:
        """Let what computes `var` write over `residual`."""
        self._blocked[var] = self._blocked[residual]

    def pooling(self, var: Var) -> Var | None:
        """The global average pooling that is a second result of what computes `var`."""
        pooling = self.plan.pooling(var)
        if pooling is None or self.plan.feature_map(pooling).halo:
            return None
        return pooling if all(map(self._can_pool, self.plan.parts(var))) else None

    def _can_pool(self, var: Var) -> bool:
        composite = self.plan.composites.get(var)
        if composite is None or composite.kind not in (*SUMS, *WINDOWS):
            return False
        return composite.kind in WINDOWS or can_pool(self, var, composite)

    def add(self, kernel: tvm.tirx.PrimFunc, name: str) -> tvm.ir.GlobalVar:
        """Add a kernel to the module; TVM must not fuse it with what stands around it."""
        attributes = {"op_pattern": OPAQUE, MERGEABLE: int(self._decides)}
        global_var = self.builder.add_func(kernel.with_attrs(attributes), name)
        if not self._decides:
            self.calls.append((global_var.name_hint, self._layer))
        return global_var

    def blocked(self, var: Var) -> Var:
        """The tensor in blocked layout."""
        if var not in self._blocked:
            size = self.plan.feature_map(var)
            source, affine = (var, None) if size.blocks > 1 else self.image(var)
            kernel = block_channels(size, affine)
            self._blocked[var] = self.call(
                kernel, "block_channels", [self._plain[source]], [tensor(size)]
            )
        return self._blocked[var]

    def image(self, var: Var) -> tuple[Var, Affine | None]:
        """A plain tensor and what to do to it: of a normalised image, the image."""
        found = normalisation_of(self.plan.flow, var)
        if found is None or found.source not in self._plain:
            return var, None
        return found

    def plain(self, var: Var) -> Expr:
        """The tensor in NCHW."""
        if var not in self._plain:
            self._plain[var] = self._unblock(var, self._blocked[var])
        return self._plain[var]

    def _unblock(self, var: Var, value: Var) -> Var:
        size = self.plan.feature_map(var)
        shape = shape_of(var)
        if shape[2:] == (1, 1) and size.halo == 0:
            # As plain operations these fuse with the gate that follows.
            flat = op.reshape(value, (size.batch, size.blocks * size.lanes, 1, 1))
            if size.channels % size.lanes == 0:
                return self.builder.emit(flat)
            flat = self.builder.emit(flat)
            return self.builder.emit(op.strided_slice(flat, [1], [0], [size.channels]))
        out = relax.TensorType(shape, "float32")
        return self.call(unblock_channels(size), "unblock_channels", [value], [out])

    def open_list(self, is_open: Var, unit: int) -> list[Expr]:
        """List and count of the open blocks of `unit` channels in a set (N, C) bool."""
        if (is_open, unit) not in self._lists:
            batch, channels = shape_of(is_open)
            shapes = ((batch, -(-channels // unit)), (batch,))
            out = [relax.TensorType(shape, "int32") for shape in shapes]
            decides, self._decides = self._decides, True
            kernel = open_list(batch, channels, unit)
            result = self.call(kernel, "open_list", [self.plain(is_open)], out)
            self._decides = decides
            self._lists[is_open, unit] = [
                self.builder.emit(relax.TupleGetItem(result, i)) for i in range(2)
            ]
        return self._lists[is_open, unit]


def check_lowered(mod: tvm.IRModule) -> None:
    """Raise if a kernel was left; no part of the pass, as TVM would make it another error.

    Raises
    ------
    NotLoweredError
        A composite function is still there.
    """
    left = [gv.name_hint for gv, func in mod.functions_items() if is_composite(func)]
    if left:
        raise NotLoweredError(f"not lowered: {', '.join(left)}; please report this network")
