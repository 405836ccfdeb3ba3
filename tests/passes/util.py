# SPDX-License-Identifier: Apache-2.0
"""What the pass tests share: what every pass promises, small graphs, and running them."""

from collections.abc import Callable

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Expr
from tvm.relax import Var, op

from tests.linked import virtual_machine
from tvm_dynprune.passes.add_by_kernel_twins import BY_KERNEL
from tvm_dynprune.passes.composite import is_composite
from tvm_dynprune.passes.dataflow import op_name


def assert_pass(pass_: tvm.transform.Pass, before: tvm.IRModule, expected: tvm.IRModule) -> None:
    """The pass turns `before` into `expected`, and keeps what every pass promises."""
    after = assert_promises(pass_, before)
    tvm.ir.assert_structural_equal(_canonical(after), _canonical(expected))


def assert_unchanged(pass_: tvm.transform.Pass, mod: tvm.IRModule) -> None:
    """The pass leaves the module alone."""
    assert_pass(pass_, mod, mod)


def assert_promises(pass_: tvm.transform.Pass, before: tvm.IRModule) -> tvm.IRModule:
    """Input untouched, result well-formed, a second run changes nothing; returns the result."""
    hash_before = tvm_ffi.structural_hash(before)
    after = pass_(before)
    relax.analysis.well_formed(after)  # raises at the first fault
    assert tvm_ffi.structural_hash(before) == hash_before, "the pass changed its input"
    tvm.ir.assert_structural_equal(_canonical(pass_(after)), _canonical(after))
    return after


def _canonical(mod: tvm.IRModule) -> tvm.IRModule:
    """Without bindings of one variable to another, which say nothing."""
    return relax.transform.CanonicalizeBindings()(mod)


class Graph:
    """Builds a module: each method emits one step and returns its variable.

    Weights are random, but the same in every run.
    """

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        self.builder = relax.BlockBuilder()
        self.inputs = [
            Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)
        ]
        self._random = np.random.default_rng(0)

    @classmethod
    def build(
        cls, body: Callable[..., Expr | tuple[Expr, ...]], *shapes: tuple[int, ...]
    ) -> tvm.IRModule:
        """A module whose ``main`` is ``body(graph, *inputs)``."""
        graph = cls(*shapes)
        with graph.builder.function("main", graph.inputs):
            with graph.builder.dataflow():
                result = body(graph, *graph.inputs)
                result = relax.Tuple(list(result)) if isinstance(result, tuple) else result
                output = graph.builder.emit_output(result)
            graph.builder.emit_func_output(output)
        return graph.builder.finalize()

    def emit(self, expr: Expr, name: str = "lv") -> Var:
        """Any expression."""
        return self.builder.emit(expr, name)

    def constant(self, *shape: int) -> Expr:
        """Random float32 values."""
        return relax.const(self._random.standard_normal(shape).astype("float32") / 4)

    def conv(
        self,
        x: Var,
        channels: int,
        kernel: int = 3,
        name: str = "conv",
        *,
        bias: bool = False,
        **kw,
    ) -> Var:
        """A convolution that keeps the plane's size unless told otherwise."""
        groups = kw.get("groups", 1)
        weight = self.constant(channels, int(x.ty.shape[1]) // groups, kernel, kernel)
        kw.setdefault("padding", kernel // 2)
        y = self.emit(op.nn.conv2d(x, weight, **kw), name)
        return self.emit(op.add(y, self.constant(1, channels, 1, 1))) if bias else y

    def depthwise(self, x: Var, name: str = "depthwise", *, bias: bool = False) -> Var:
        """A 3x3 depthwise convolution."""
        channels = int(x.ty.shape[1])
        return self.conv(x, channels, name=name, bias=bias, groups=channels)

    def relu(self, x: Var) -> Var:
        """A ReLU."""
        return self.emit(op.nn.relu(x))

    def relu6(self, x: Var) -> Var:
        """A ReLU6."""
        return self.emit(op.clip(x, 0.0, 6.0))

    def prelu(self, x: Var) -> Var:
        """A slope for each channel."""
        return self.emit(op.nn.prelu(x, self.constant(int(x.ty.shape[1])), axis=1))

    def gate(
        self,
        x: Var,
        channels: int,
        group_size: int = 1,
        threshold: float = 0.0,
        name: str = "mask",
    ) -> Var:
        """An LKAM on `x`: mask (N, channels, 1, 1) of zeros and ones."""
        batch, groups = int(x.ty.shape[0]), channels // group_size
        pooled = self.emit(op.mean(x, axis=[2, 3], keepdims=True))
        logits = self.conv(pooled, groups, 1, "gate")
        decided = self.emit(op.greater(logits, relax.const(threshold, "float32")))
        decided = self.emit(op.astype(decided, "float32"), "decided" if group_size > 1 else name)
        if group_size == 1:
            return decided
        each = self.emit(op.expand_dims(decided, 2))
        spread = self.emit(op.broadcast_to(each, (batch, groups, group_size, 1, 1)))
        return self.emit(op.reshape(spread, (batch, channels, 1, 1)), name)

    def times(self, x: Var, mask: Var, name: str = "gated") -> Var:
        """A multiplication."""
        return self.emit(op.multiply(x, mask), name)

    def add(self, x: Var, y: Var) -> Var:
        """An addition."""
        return self.emit(op.add(x, y))

    def concat(self, *parts: Var) -> Var:
        """Concatenation along the channels."""
        return self.emit(op.concat(list(parts), axis=1))


def sequence(*passes: tvm.transform.Pass) -> tvm.transform.Sequential:
    """The passes one after the other, as one pass."""
    return tvm.transform.Sequential(list(passes))


def ops(mod: tvm.IRModule, name: str = "main") -> list[str]:
    """The operators that a function calls, in order; a composite's name for its call."""
    found = []
    for block in mod[name].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call):
                is_function = isinstance(value.op, tvm.ir.GlobalVar)
                found.append(value.op.name_hint if is_function else op_name(value))
    return found


def composites(mod: tvm.IRModule) -> dict[str, relax.Function]:
    """The module's composite functions by name."""
    return {gv.name_hint: f for gv, f in mod.functions_items() if is_composite(f)}


def roles(mod: tvm.IRModule) -> dict[str, list[str]]:
    """Composite function → what its parameters are."""
    return {name: [str(r) for r in f.attrs["roles"]] for name, f in composites(mod).items()}


def run(mod: tvm.IRModule, *inputs: np.ndarray, name: str = "main") -> list[np.ndarray]:
    """The function's results, computed by TVM's own kernels."""
    quick = tvm.target.Target({"kind": "llvm", "opt-level": 0})  # compiled to run once
    machine = virtual_machine(tvm.compile(mod, quick))
    result = machine[name](*map(tvm.runtime.tensor, inputs))
    return [r.numpy() for r in ([result] if hasattr(result, "numpy") else result)]


def results_of_both(network: relax.VirtualMachine, arguments: list[np.ndarray]) -> list[np.ndarray]:
    """What ``main`` returns, which its twin that calls kernel by kernel returns as well."""
    apart, together = (
        [r.numpy() for r in ([result] if hasattr(result, "numpy") else result)]
        for name in ("main" + BY_KERNEL, "main")
        for result in [network[name](*map(tvm.runtime.tensor, arguments))]
    )
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_array_equal(one, other)
    return apart


def random_inputs(mod: tvm.IRModule, name: str = "main") -> list[np.ndarray]:
    """Inputs of the function's shapes."""
    rng = np.random.default_rng(1)
    shapes = [[int(size) for size in var.ty.shape] for var in mod[name].params]
    return [rng.standard_normal(shape).astype("float32") for shape in shapes]


def assert_same_numbers(before: tvm.IRModule, after: tvm.IRModule, *more: np.ndarray) -> None:
    """Both give the same results (`after` for more inputs), as far as `before` has them."""
    inputs = random_inputs(before)
    for wanted, got in zip(run(before, *inputs), run(after, *inputs, *more), strict=False):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
