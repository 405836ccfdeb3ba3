# SPDX-License-Identifier: Apache-2.0
import json

import tvm
from tvm.script import ir as I, relax as R, tirx as T

from tests.passes.util import assert_pass, assert_unchanged
from tvm_dynprune.passes.lower_kernels import KERNEL_CALLS
from tvm_dynprune.passes.sink_into_branches import SinkIntoBranches

A = R.Tensor((4,), "float32")


def with_calls(mod: tvm.IRModule, calls: list[str]) -> tvm.IRModule:
    """The module whose ``main`` lists the layers of its kernels in order."""
    listed = json.dumps([["f", layer] for layer in calls])
    mod = tvm.IRModule(mod.functions)
    mod["main"] = mod["main"].with_attr(KERNEL_CALLS, listed)
    return mod


def test_what_only_a_branch_reads_moves_into_its_function():
    @I.ir_module
    class Before:
        @T.prim_func(private=True)
        def f(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            T.func_attr({"mergeable": 0})
            for i in range(4):
                y[i] = x[i] + T.float32(1)

        @R.function
        def main(x: A, is_open: R.Tensor((), "bool")):
            h = R.call_tir(Before.f, (x,), A)
            k = R.call_tir(Before.f, (h,), A)
            both = R.call_tir(Before.f, (x,), A)
            if is_open:
                a = R.call_tir(Before.f, (k,), A)
                y = a
            else:
                b = R.call_tir(Before.f, (both,), A)
                y = b
            z = R.add(y, both)
            return z

    @I.ir_module
    class Expected:
        @T.prim_func(private=True)
        def f(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")):
            T.func_attr({"mergeable": 0})
            for i in range(4):
                y[i] = x[i] + T.float32(1)

        @R.function(private=True)
        def branch(x: A) -> A:
            h = R.call_tir(Expected.f, (x,), A)
            k = R.call_tir(Expected.f, (h,), A)
            a = R.call_tir(Expected.f, (k,), A)
            return a

        @R.function
        def main(x: A, is_open: R.Tensor((), "bool")):
            both = R.call_tir(Expected.f, (x,), A)
            if is_open:
                a = Expected.branch(x)
                y = a
            else:
                b = R.call_tir(Expected.f, (both,), A)
                y = b
            z = R.add(y, both)
            return z

    before = with_calls(Before, ["one", "two", "both", "three", "closed"])
    expected = with_calls(Expected, ["both", "one", "two", "three", "closed"])
    assert_pass(SinkIntoBranches(), before, expected)


def test_a_block_within_a_block():
    @I.ir_module
    class Before:
        @R.function
        def main(x: A, outer: R.Tensor((), "bool"), inner: R.Tensor((), "bool")):
            h = R.nn.relu(x)
            if inner:
                a = R.nn.relu(h)
                k = a
            else:
                b = R.nn.relu(x)
                k = b
            if outer:
                c = R.nn.relu(k)
                y = c
            else:
                d = R.nn.relu(x)
                y = d
            return y

    @I.ir_module
    class Expected:
        @R.function(private=True)
        def branch(x: A) -> A:
            h = R.nn.relu(x)
            a = R.nn.relu(h)
            return a

        @R.function(private=True)
        def branch1(inner: R.Tensor((), "bool"), x: A) -> A:
            if inner:
                a = Expected.branch(x)
                k = a
            else:
                b = R.nn.relu(x)
                k = b
            c = R.nn.relu(k)
            return c

        @R.function
        def main(x: A, outer: R.Tensor((), "bool"), inner: R.Tensor((), "bool")):
            if outer:
                c = Expected.branch1(inner, x)
                y = c
            else:
                d = R.nn.relu(x)
                y = d
            return y

    assert_pass(SinkIntoBranches(), Before, Expected)


def test_what_others_read_stays():
    """The condition, what both branches read, and what the function returns."""

    @I.ir_module
    class Before:
        @R.function
        def main(x: A, w: R.Tensor((), "bool")):
            is_open = R.logical_not(w)
            shared = R.nn.relu(x)
            returned = R.nn.relu(x)
            if is_open:
                a = R.add(shared, returned)
                y = a
            else:
                b = R.nn.relu(shared)
                y = b
            return (y, returned)

    assert_unchanged(SinkIntoBranches(), Before)


def test_without_conditionals_nothing_happens():
    @I.ir_module
    class Before:
        @R.function
        def main(x: A):
            with R.dataflow():
                h = R.nn.relu(x)
                y = R.nn.relu(h)
                R.output(y)
            return y

    assert_unchanged(SinkIntoBranches(), Before)
