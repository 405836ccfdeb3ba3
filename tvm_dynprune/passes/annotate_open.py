# SPDX-License-Identifier: Apache-2.0
"""AnnotateOpen: tell each kernel which channels of its input and output count.

Before::

    y = conv1(x, w, b, mask)
    z = conv2(y, w2)

After::

    open = R.reshape(R.not_equal(mask, 0), (N, C))
    y = conv1(x, w, b, mask, open)                 # open_out: compute only these
    z = conv2(y, w2, open)                         # open_in: only these can be non-zero

Two analyses meet. Forward: which channels can be *non-zero*, given the gates. Backward: which
channels somebody *needs*, given that a gate closes every reader of the others. A kernel computes
the channels that are in both. Both go through activations that keep 0, pooling, resizing,
depthwise convolution, concatenation, and addition, which is open where either side is. A
convolution whose channels one decision closes needs none of its input when they are closed: so a
residual block's gate closes the whole block.

A convolution cannot wait for a gate that is computed from it: such masks are left out of its set.
The attribute ``block`` marks the convolutions of a block that one decision closes.
Needs FuseKernels before it; feeds LowerKernels.
"""

import tvm
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Var, op

from tvm_dynprune.passes.activations import clip_keeps_zero, is_never_zero
from tvm_dynprune.passes.channel_sets import (
    ChannelSet,
    Concatenation,
    Mask,
    Union,
    concatenation,
    granularity,
    intersection,
    is_whole,
    of_width,
    slice_of,
    union,
    without,
)
from tvm_dynprune.passes.composite import (
    BY_CHANNEL,
    CONVOLUTIONS,
    NORMS,
    SUMS,
    CompositeCall,
    as_composite,
    with_arguments,
)
from tvm_dynprune.passes.dataflow import (
    Dataflow,
    Functions,
    map_functions,
    op_name,
    operands,
    rebuild,
    result_of,
    shape_of,
)
from tvm_dynprune.passes.gates import can_be_zero, group_size

_ACTIVATIONS = ("nn.relu", "clip", "nn.leakyrelu", "tanh", "nn.silu", "nn.gelu")
_KEEPS_ZERO = (*_ACTIVATIONS, "nn.adaptive_avg_pool2d", "reshape")
_PLANES = ("max_pool2d", "avg_pool2d", "resize2d", "global_average")


@tvm.transform.module_pass(opt_level=0, name="AnnotateOpen")
class AnnotateOpen:
    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        return map_functions(mod, lambda func, functions: _Annotator(func, functions).run())


class OpenSets:
    """The two analyses over one function with composite calls.

    `nonzero[var]` and `needed[var]` are sets of a tensor's channels; `computed[var]` is what the
    composite bound to `var` has to compute.
    """

    def __init__(self, func: relax.Function, functions: Functions) -> None:
        self.flow, self.functions = Dataflow(func), functions
        self.nonzero: dict[Var, ChannelSet | None] = {}
        self.needed: dict[Var, ChannelSet | None] = dict.fromkeys(self.flow.outputs)
        self._claims: dict[Var, list[ChannelSet | None]] = {v: [None] for v in self.flow.outputs}
        for binding in self.flow.bindings:
            self.nonzero[binding.var] = self._forward(binding.value)
        self.computed: dict[Var, ChannelSet | None] = {}
        for binding in reversed(self.flow.bindings):
            self._backward(binding.var, binding.value)

    def _mask(self, expr: Expr, product: Expr) -> ChannelSet | None:
        """The channels where a factor of `product` is not 0; None if it is no factor by channel."""
        shape = (*shape_of(product)[:2], 1, 1)
        if not isinstance(expr, Var) or shape_of(expr) != shape:
            return None
        if expr not in self.flow.definition or not can_be_zero(self.flow, expr):
            return None
        composite = as_composite(self.functions, self.flow.definition[expr])
        if composite is not None and any(map(is_never_zero, composite.epilogue[-1:])):
            return None
        return Mask(expr, shape[1], group_size(self.flow, expr))

    def _forward(self, value: Expr) -> ChannelSet | None:
        composite = as_composite(self.functions, value)
        if composite is not None:
            return self._forward_composite(composite, value)
        name, arguments = op_name(value), list(getattr(value, "args", []))
        if name in _KEEPS_ZERO and _keeps_channels(value):
            return self.nonzero.get(arguments[0])
        if name == "clip":
            return None
        if name == "add" and shape_of(arguments[0]) == shape_of(arguments[1]):
            return union(*(self.nonzero.get(argument) for argument in arguments))
        if name == "multiply" and len(shape_of(value) or ()) == 4:
            whole = [a for a in arguments if shape_of(a) == shape_of(value)]
            masks = [self._mask(argument, value) for argument in arguments]
            return intersection(*(self.nonzero.get(argument) for argument in whole), *masks)
        if name == "concat" and int(value.attrs.axis) == 1:
            fields = list(arguments[0].fields)
            return concatenation([(self.nonzero.get(f), shape_of(f)[1]) for f in fields])
        return None

    def _forward_composite(self, composite: CompositeCall, value: Expr) -> ChannelSet | None:
        x, arguments = self.nonzero.get(composite.arguments["x"]), composite.arguments
        if composite.kind in _PLANES:
            return x
        own = self._mask(arguments["scale"], value) if "scale" in arguments else None
        if composite.kind in BY_CHANNEL:
            return own if "bias" in composite.epilogue else intersection(own, x)
        if "residual" in arguments:
            return union(own, self.nonzero.get(arguments["residual"]))
        return own

    def _backward(self, var: Var, value: Expr) -> None:
        self.needed[var] = needed = union(*self._claims.get(var, []))
        composite = as_composite(self.functions, value)
        if composite is not None:
            self._backward_composite(var, composite, needed)
            return
        name, arguments = op_name(value), list(getattr(value, "args", []))
        if name in _KEEPS_ZERO and _keeps_channels(value):
            self._claim(arguments[0], needed)
        elif name == "add" and shape_of(arguments[0]) == shape_of(arguments[1]):
            for argument in arguments:
                self._claim(argument, needed)
        elif name == "multiply" and len(shape_of(value) or ()) == 4:
            masks = [self._mask(argument, value) for argument in arguments]
            for argument, other in zip(arguments, reversed(masks), strict=True):
                is_mask = shape_of(argument) != shape_of(value)
                self._claim(argument, None if is_mask else intersection(needed, other))
        elif name == "concat" and int(value.attrs.axis) == 1:
            start = 0
            for field in arguments[0].fields:
                self._claim(field, slice_of(needed, start, shape_of(field)[1]))
                start += shape_of(field)[1]
        else:
            for operand in operands(value):
                self._claim(operand, None)

    def _backward_composite(
        self, var: Var, composite: CompositeCall, needed: ChannelSet | None
    ) -> None:
        arguments = composite.arguments
        own = self._mask(arguments["scale"], var) if "scale" in arguments else None
        computed = intersection(own, needed)
        if composite.kind in (*_PLANES, *BY_CHANNEL):
            computed = intersection(self.nonzero[var], needed)
        elif composite.kind in ("transposed_conv2d", *NORMS):
            computed = None
        source = arguments["x"]
        late = self.flow.descendants(var)
        self.computed[var] = without(computed, late)
        wanted = self.computed[var]
        if composite.kind in SUMS:
            wanted = of_width(wanted, shape_of(source)[1]) if is_whole(wanted) else None
        self._claim(source, wanted)
        for role, argument in arguments.items():
            if role == "residual":
                self._claim(argument, needed)
            elif role != "x" and isinstance(argument, Var):
                self._claim(argument, None)

    def _claim(self, expr: Expr, channels: ChannelSet | None) -> None:
        if isinstance(expr, Var):
            self._claims.setdefault(expr, []).append(channels)


def _keeps_channels(value: Expr) -> bool:
    """Whether an elementwise operation or reshape keeps 0 at 0 and the channels apart."""
    before, after = shape_of(value.args[0]), shape_of(value)
    if op_name(value) == "clip":
        return clip_keeps_zero(value)
    if op_name(value) == "reshape":
        sizes = [(*shape, 1, 1)[:4] for shape in (before or (), after or ())]
        return sizes[0] == sizes[1]
    return before is not None and len(before) >= 2


class _Annotator:
    def __init__(self, func: relax.Function, functions: Functions) -> None:
        self.func, self.functions = func, functions
        self.sets = OpenSets(func, functions)
        self.values: dict[Var, Expr] = {}
        self.variables: dict[ChannelSet, Var] = {}
        # Decisions by which whole convolutions without a mask of their own are closed.
        self.blocks: set[ChannelSet] = set()

    def run(self) -> relax.Function:
        sets = self.sets
        self._find_blocks()
        for binding in sets.flow.bindings:
            composite = as_composite(self.functions, binding.value)
            value = binding.value
            if composite is not None and "open_unit" not in composite.func.attrs:
                value = self._annotated(binding.var, composite)
            self.values[binding.var] = value
        return rebuild(self.func, self.values, result_of(self.func))

    def _find_blocks(self) -> None:
        for var, computed in self.sets.computed.items():
            composite = as_composite(self.functions, self.sets.flow.definition[var])
            if is_whole(computed) and composite.kind in CONVOLUTIONS:
                if "scale" not in composite.arguments:
                    self.blocks.add(of_width(computed, 1))

    def _block(self, composite: CompositeCall, computed: ChannelSet | None) -> str:
        """The part that a convolution plays in a block: "inner", "last" or none."""
        if not is_whole(computed) or of_width(computed, 1) not in self.blocks:
            return ""
        if "scale" not in composite.arguments:
            return "inner" if composite.kind in CONVOLUTIONS else ""
        return "last" if composite.kind == "conv2d" else ""

    def _annotated(self, var: Var, composite: CompositeCall) -> Expr:
        extra, unit_in, unit = {}, 0, 0
        if composite.kind == "conv2d":
            incoming = self.sets.nonzero.get(composite.arguments["x"])
            incoming = without(incoming, self.sets.flow.descendants(var))
            if incoming is not None:
                extra["open_in"] = self._variable(incoming)
                unit_in = granularity(incoming)
        computed = self.sets.computed[var]
        if computed is not None:
            extra["open_out"] = self._variable(computed)
            unit = granularity(computed)
        attributes: dict[str, object] = {"open_unit_in": unit_in, "open_unit": unit}
        if part := self._block(composite, computed):
            attributes["block"] = part
        return with_arguments(self.functions, composite, extra, **attributes)

    def _variable(self, item: ChannelSet) -> Var:
        """A variable (N, C) bool that holds the set."""
        if item not in self.variables:
            value = relax.BlockBuilder().normalize(self._expression(item))
            var = relax.DataflowVar("open", value.ty)
            self.values[var] = value
            self.variables[item] = var
        return self.variables[item]

    def _expression(self, item: ChannelSet) -> Expr:
        if isinstance(item, Mask):
            batch = shape_of(item.var)[0]
            nonzero = op.not_equal(item.var, relax.const(0, "float32"))
            builder = relax.BlockBuilder()
            var = relax.DataflowVar("nonzero", builder.normalize(nonzero).ty)
            self.values[var] = builder.normalize(nonzero)
            if item.channels != shape_of(item.var)[1]:
                first = self._bound(op.strided_slice(var, [1], [0], [1]))
                return op.broadcast_to(
                    self._bound(op.reshape(first, (batch, 1))), (batch, item.channels)
                )
            return op.reshape(var, (batch, item.channels))
        if isinstance(item, Concatenation):
            parts = [self._part(part, size) for part, size in item.parts]
            return op.concat(parts, axis=1)
        combine = op.logical_or if isinstance(item, Union) else op.logical_and
        first, *rest = sorted((self._variable(part) for part in item.parts), key=self._order)
        for part in rest[:-1]:
            first = self._bound(combine(first, part))
        return combine(first, rest[-1])

    def _part(self, part: ChannelSet | None, channels: int) -> Expr:
        if part is not None:
            return self._variable(part)
        batch = shape_of(self.func.params[0])[0]
        return self._bound(op.full((batch, channels), relax.const(True, "bool"), "bool"))

    def _bound(self, value: Expr) -> Var:
        value = relax.BlockBuilder().normalize(value)
        var = relax.DataflowVar("open", value.ty)
        self.values[var] = value
        return var

    def _order(self, var: Var) -> int:
        return list(self.values).index(var)
