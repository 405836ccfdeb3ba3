# SPDX-License-Identifier: Apache-2.0
import pytest
import tvm

from tests.passes.graphs import CASES
from tests.passes.util import Graph, assert_promises, assert_unchanged, composites, sequence
from tvm_dynprune.passes.annotate_open import AnnotateOpen
from tvm_dynprune.passes.choose_lowering import BREAK_EVEN, ChooseLowering
from tvm_dynprune.passes.fuse_kernels import FuseKernels


@pytest.fixture(scope="module")
def annotated() -> tvm.IRModule:
    graph = Graph.build(CASES["layers_in_a_row"].body, (1, 16, 6, 6))
    return sequence(FuseKernels(), AnnotateOpen())(graph)


def chosen(mod: tvm.IRModule) -> dict[str, str]:
    return {str(f.attrs["layer"]): str(f.attrs["lowering"]) for f in composites(mod).values()}


@pytest.mark.parametrize("lowering", ["dense", "if", "indexed"])
def test_every_kernel_gets_the_lowering_asked_for(annotated, lowering):
    after = assert_promises(ChooseLowering(lowering), annotated)
    assert set(chosen(after).values()) == {lowering}


def test_changes_nothing_but_the_attribute(annotated):
    after = ChooseLowering("if")(annotated)
    tvm.ir.assert_structural_equal(after["main"], annotated["main"], map_free_vars=True)
    for name, function in composites(after).items():
        before = composites(annotated)[name]
        tvm.ir.assert_structural_equal(function.without_attr("lowering"), before)


def test_auto_is_indexed_without_calibration(annotated):
    assert set(chosen(ChooseLowering()(annotated)).values()) == {"indexed"}


def test_auto_is_dense_where_calibration_shows_little_to_skip(annotated):
    products = {"first": BREAK_EVEN + 0.01, "second": BREAK_EVEN, "third": 0.2}
    found = chosen(ChooseLowering("auto", products)(annotated))
    assert (found["first"], found["second"], found["third"]) == ("dense", "indexed", "indexed")


def test_leaves_what_is_chosen_already(annotated):
    assert_unchanged(ChooseLowering("dense"), ChooseLowering("indexed")(annotated))


def test_leaves_plain_functions():
    graph = Graph.build(CASES["layers_in_a_row"].body, (1, 16, 6, 6))
    assert_unchanged(ChooseLowering("indexed"), graph)


def test_an_unknown_lowering_is_named():
    with pytest.raises(ValueError, match="'fast': one of auto, dense, if, indexed"):
        ChooseLowering("fast")


def test_products_are_copied():
    products = {"first": 1.0}
    chooser = ChooseLowering("auto", products)
    products["first"] = 0.0
    assert chooser.open_products == {"first": 1.0}
