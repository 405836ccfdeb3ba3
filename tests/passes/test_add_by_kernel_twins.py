# SPDX-License-Identifier: Apache-2.0
from tvm.script import ir as I, relax as R, tirx as T

from tests.passes.util import assert_pass
from tvm_dynprune.passes.add_by_kernel_twins import AddByKernelTwins

A = R.Tensor((4,), "float32")


def test_twins_call_twins():
    @I.ir_module
    class Before:
        @T.prim_func(private=True)
        def f(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            for i in range(4):
                y[i] = x[i]

        @R.function(private=True)
        def branch(x: A) -> A:
            a = R.call_tir(Before.f, (x,), A)
            return a

        @R.function
        def main(x: A) -> A:
            a = Before.branch(x)
            b = R.call_tir(Before.f, (a,), A)
            return b

    @I.ir_module
    class Expected:
        @T.prim_func(private=True)
        def f(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            for i in range(4):
                y[i] = x[i]

        @R.function(private=True)
        def branch(x: A) -> A:
            a = R.call_tir(Expected.f, (x,), A)
            return a

        @R.function
        def main(x: A) -> A:
            a = Expected.branch(x)
            b = R.call_tir(Expected.f, (a,), A)
            return b

        @R.function(private=True)
        def branch_by_kernel(x: A) -> A:
            R.func_attr({"_by_kernel": 1})
            a = R.call_tir(Expected.f, (x,), A)
            return a

        @R.function
        def main_by_kernel(x: A) -> A:
            R.func_attr({"_by_kernel": 1})
            a = Expected.branch_by_kernel(x)
            b = R.call_tir(Expected.f, (a,), A)
            return b

    assert_pass(AddByKernelTwins(), Before, Expected)
