# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.transform import CallTIRRewrite, CanonicalizeBindings, RemovePurityChecking
from tvm.script import ir as I, relax as R, tirx as T

from tests.linked import virtual_machine
from tests.passes.util import assert_pass, assert_promises, assert_unchanged
from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.passes.add_by_kernel_twins import BY_KERNEL, AddByKernelTwins
from tvm_dynprune.passes.merge_kernel_calls import MergeKernelCalls

A = R.Tensor((4,), "float32")
BEFORE = tvm.transform.Sequential(
    [RemovePurityChecking(), CallTIRRewrite(), CanonicalizeBindings()]
)
AFTER = tvm.transform.Sequential(
    [
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
)


@I.ir_module
class Chain:
    @T.prim_func(private=True)
    def double(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
        for i in range(4):
            y[i] = x[i] * T.float32(2)

    @T.prim_func(private=True)
    def add(
        x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32"), z: T.Buffer((4,), "float32")
    ):
        for i in range(4):
            z[i] = x[i] + y[i]

    @R.function
    def main(x: A):
        a = R.call_tir(Chain.double, (x,), A)
        b = R.call_tir(Chain.add, (x, a), A)
        return b


@I.ir_module
class Conditional:
    @T.prim_func(private=True)
    def double(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
        for i in range(4):
            y[i] = x[i] * T.float32(2)

    @R.function(private=True)
    def branch(x: A) -> A:
        a = R.call_tir(Conditional.double, (x,), A)
        b = R.call_tir(Conditional.double, (a,), A)
        c = R.call_tir(Conditional.double, (b,), A)
        return c

    @R.function
    def main(x: A, is_open: R.Tensor((), "bool")):
        a = R.call_tir(Conditional.double, (x,), A)
        b = R.call_tir(Conditional.double, (a,), A)
        if is_open:
            c = Conditional.branch(b)
            y = c
        else:
            d = R.call_tir(Conditional.double, (b,), A)
            e = R.call_tir(Conditional.double, (d,), A)
            y = e
        f = R.call_tir(Conditional.double, (y,), A)
        g = R.call_tir(Conditional.double, (f,), A)
        return (g, b)


def kernels_called(function: relax.Function) -> list[str]:
    """Outside of branches, in order."""
    values = [b.value for block in function.body.blocks for b in block.bindings]
    ops = [value.op for value in values if isinstance(value, relax.Call)]
    return [op.name_hint for op in ops if isinstance(op, tvm.ir.GlobalVar)]


def built(mod: tvm.IRModule) -> relax.VirtualMachine:
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    with target:
        mod = AFTER(mod)
        no_passes = tvm.transform.Sequential([])
        executable = relax.build(mod, target, relax_pipeline=no_passes, tir_pipeline=TIR_PIPELINE)
    return virtual_machine(executable)


def test_a_chain_becomes_one_function_that_calls_the_kernels():
    @I.ir_module
    class Expected:
        @T.prim_func(private=True)
        def double(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            for i in range(4):
                y[i] = x[i] * T.float32(2)

        @T.prim_func(private=True)
        def add(
            x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32"), z: T.Buffer((4,), "float32")
        ):
            for i in range(4):
                z[i] = x[i] + y[i]

        @T.prim_func(private=True)
        def main_kernels(x: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
            workspace = T.alloc_buffer((T.int64(1024),), "uint8")
            a = T.meta_var(
                T.tvm_stack_make_array(
                    T.address_of(workspace[T.int64(0)]),
                    T.tvm_stack_make_shape(4),
                    0,
                    1,
                    T.float32(0),
                    0,
                )
            )
            T.call_cpacked("double", x, a)
            T.call_cpacked("add", x, a, b)

        @R.function
        def main(x: A):
            b = R.call_tir(Expected.main_kernels, (x,), A)
            return b

    assert_pass(MergeKernelCalls(), BEFORE(Chain), BEFORE(Expected))


def test_what_branches_and_callers_read_stays_a_tensor():
    after = assert_promises(MergeKernelCalls(), BEFORE(Conditional))
    (conditional,) = [
        binding.value
        for block in after["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.If)
    ]
    closed = relax.Function([], conditional.false_branch)
    for function, runs in ((after["main"], 2), (after["branch"], 1), (closed, 1)):
        names = kernels_called(function)
        assert len(names) == runs
        # What a run is given and what it leaves: the tensors between are inside.
        assert [len(after[name].params) for name in names] == [2] * runs


@pytest.mark.parametrize("is_open", [True, False])
def test_branches_compute_the_same(is_open):
    x = np.arange(4, dtype="float32")
    arguments = [tvm.runtime.tensor(x), tvm.runtime.tensor(np.array(is_open))]
    machine = built(MergeKernelCalls()(AddByKernelTwins()(BEFORE(Conditional))))
    for function in ("main", "main" + BY_KERNEL):
        result, inner = machine[function](*arguments)
        np.testing.assert_array_equal(inner.numpy(), 4 * x)
        np.testing.assert_array_equal(result.numpy(), (128 if is_open else 64) * x)


def test_memory_is_aligned_and_used_again():
    @I.ir_module
    class Long:
        @T.prim_func(private=True)
        def check(x: T.Buffer((999,), "float32"), y: T.Buffer((999,), "float32")):
            for i in range(999):
                y[i] = x[i] + T.float32(1)

        @R.function
        def main(x: R.Tensor((999,), "float32")):
            a = R.call_tir(Long.check, (x,), R.Tensor((999,), "float32"))
            b = R.call_tir(Long.check, (a,), R.Tensor((999,), "float32"))
            c = R.call_tir(Long.check, (b,), R.Tensor((999,), "float32"))
            d = R.call_tir(Long.check, (c,), R.Tensor((999,), "float32"))
            e = R.call_tir(Long.check, (d,), R.Tensor((999,), "float32"))
            return e

    after = MergeKernelCalls()(BEFORE(Long))
    assert (
        'T.alloc_buffer((T.int64(8028),), "uint8")' in after["main_kernels"].script()
    )  # 4032 + 3996
    x = np.random.default_rng(0).random(999, "float32")
    result = built(after)["main"](tvm.runtime.tensor(x)).numpy()
    np.testing.assert_allclose(result, x + 5, rtol=1e-6)


def test_integers_are_passed_on():
    @I.ir_module
    class Scaled:
        @T.prim_func(private=True)
        def scale(x: T.Buffer((4,), "float32"), n: T.int64, y: T.Buffer((4,), "float32")):
            for i in range(4):
                y[i] = x[i] * T.Cast("float32", n)

        @R.function
        def main(x: A):
            a = R.call_tir(Scaled.scale, (x, R.prim_value(3)), A)
            b = R.call_tir(Scaled.scale, (a, R.prim_value(2)), A)
            return b

    x = np.arange(4, dtype="float32")
    after = assert_promises(MergeKernelCalls(), BEFORE(Scaled))
    assert len(after["main_kernels"].params) == 2
    np.testing.assert_array_equal(built(after)["main"](tvm.runtime.tensor(x)).numpy(), 6 * x)


def test_a_kernels_error_reaches_the_caller():
    @I.ir_module
    class Wrong:
        @T.prim_func(private=True)
        def double(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            for i in range(4):
                y[i] = x[i] * T.float32(2)

        @T.prim_func(private=True)
        def fail(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            T.call_packed("no_function_of_this_name")
            y[0] = x[0]

        @R.function
        def main(x: A):
            a = R.call_tir(Wrong.double, (x,), A)
            b = R.call_tir(Wrong.fail, (a,), A)
            return b

    machine = built(MergeKernelCalls()(BEFORE(Wrong)))
    with pytest.raises(Exception, match="no_function_of_this_name"):
        machine["main"](tvm.runtime.tensor(np.zeros(4, "float32")))


def test_leaves_single_kernels_and_twins():
    @I.ir_module
    class Single:
        @T.prim_func(private=True)
        def double(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            for i in range(4):
                y[i] = x[i] * T.float32(2)

        @R.function
        def main(x: A):
            a = R.call_tir(Single.double, (x,), A)
            return a

    assert_unchanged(MergeKernelCalls(), BEFORE(Single))
    twins = AddByKernelTwins()(BEFORE(Chain))
    after = MergeKernelCalls()(twins)
    tvm.ir.assert_structural_equal(after["main" + BY_KERNEL], twins["main" + BY_KERNEL])
