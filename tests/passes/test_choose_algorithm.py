# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace

import pytest
import tvm

from tests.passes.graphs import CASES
from tests.passes.util import Graph, assert_promises, assert_unchanged, composites, sequence
from tvm_dynprune.passes.annotate_open import AnnotateOpen
from tvm_dynprune.passes.choose_algorithm import ChooseAlgorithm, choices_of, weights_kib
from tvm_dynprune.passes.choose_lowering import ChooseLowering
from tvm_dynprune.passes.fuse_kernels import FuseKernels
from tvm_dynprune.passes.kernel_cost import WinogradPlane, direct_cost, winograd_cost
from tvm_dynprune.soc import Cost

LANES = 16
COST = Cost(transform=2.0, weight=4.0, cached_weight=0.5, weight_transform=2.0, gather=20.0)
NO_CACHE = 0  # KiB
ALL = {"direct", "winograd_2", "winograd_4"}


def annotated(name: str, lowering: str = "indexed") -> tvm.IRModule:
    """A network over x (1, 16, 6, 6) whose lowering is chosen."""
    graph = Graph.build(CASES[name].body, (1, 16, 6, 6))
    return sequence(FuseKernels(), AnnotateOpen(), ChooseLowering(lowering))(graph)


def candidates(mod: tvm.IRModule, **options) -> dict[str, set[str]]:
    """Layer → the algorithms that were compared."""
    after = ChooseAlgorithm(LANES, COST, NO_CACHE, **options)(mod)
    return {
        str(f.attrs["layer"]): set(json.loads(str(f.attrs["costs"])))
        for f in composites(after).values()
        if "costs" in f.attrs
    }


def test_the_cheapest_is_taken_and_the_costs_are_kept():
    after = assert_promises(ChooseAlgorithm(LANES, COST, NO_CACHE), annotated("layers_in_a_row"))
    for func in composites(after).values():
        if "costs" in func.attrs:
            costs = json.loads(str(func.attrs["costs"]))
            assert costs[str(func.attrs["algorithm"])] == min(costs.values())


def test_3x3_can_be_winograd():
    layers = candidates(annotated("layers_in_a_row"))
    assert layers["first"] == layers["second"] == layers["third"] == ALL
    assert all(names == {"direct"} for layer, names in layers.items() if "gate" in layer)


def test_channels_that_open_by_less_than_a_vector_are_gathered_or_not_skipped():
    layers = candidates(annotated("activation_inside_the_mask"))  # groups of 8 under 16 lanes
    assert layers["first"] == ALL | {f"{name}_in" for name in ALL}
    assert layers["second"] == ALL  # its input channels go by lists of channels


def test_gathering_is_chosen_by_its_cost():
    for gather, expected in ((1e6, False), (1e-6, True)):
        # A transform so dear that nothing is Winograd.
        choose = ChooseAlgorithm(LANES, Cost(1e6, 4.0, 0.5, 1e6, gather), NO_CACHE)
        after = composites(choose(annotated("activation_inside_the_mask")))
        (func,) = (f for f in after.values() if f.attrs["layer"] == "first")
        assert (func.attrs["algorithm"] == "direct") == expected


@pytest.mark.parametrize(
    ("channels", "kernel", "padding", "strides", "expected"),
    [
        (3, 7, 3, 2, {"direct", "winograd_strided"}),
        (3, 5, 2, 2, {"direct", "winograd_strided"}),
        (4, 6, 2, 2, {"direct", "winograd_strided"}),
        (5, 7, 3, 2, {"direct"}),  # more than a vector of channels after squaring
        (3, 3, 1, 2, {"direct"}),
        (3, 9, 4, 2, {"direct"}),
        (3, 7, 3, 1, {"direct"}),
    ],
)
def test_first_layers_with_steps_of_2(channels, kernel, padding, strides, expected):
    def body(g, x):
        return g.conv(x, 16, kernel, "stem", strides=(strides, strides), padding=padding)

    graph = Graph.build(body, (1, channels, 20, 20))
    mod = sequence(FuseKernels(), AnnotateOpen(), ChooseLowering("auto"))(graph)
    assert candidates(mod)["stem"] == expected


def test_what_skips_nothing_may_be_winograd_whatever_the_groups():
    layers = candidates(annotated("activation_inside_the_mask", "dense"))
    assert layers["first"] == layers["second"] == ALL


def test_a_costly_transform_makes_direct_the_choice():
    for transform, expected in ((1e6, "direct"), (1e-6, "winograd_2")):
        choose = ChooseAlgorithm(LANES, Cost(transform, 4.0, 0.5, 2.0, 20.0), NO_CACHE)
        func = next(
            f
            for f in composites(choose(annotated("layers_in_a_row"))).values()
            if f.attrs["layer"] == "second"
        )
        assert func.attrs["algorithm"] == expected


def test_without_winograd_everything_is_direct():
    assert set.union(*candidates(annotated("layers_in_a_row"), winograd=False).values()) == {
        "direct"
    }


def test_calibration_changes_the_costs():
    mod = annotated("layers_in_a_row")
    costs = []
    for product in (1.0, 0.01):
        after = ChooseAlgorithm(LANES, COST, NO_CACHE, {"second": product})(mod)
        func = next(f for f in composites(after).values() if f.attrs["layer"] == "second")
        costs.append(json.loads(str(func.attrs["costs"]))["direct"])
    assert costs[1] == pytest.approx(0.01 * costs[0])


def test_weights_that_stay_in_the_cache_cost_less():
    mod = annotated("layers_in_a_row")
    costs = []
    for cache_kib, cached in ((4 * weights_kib(mod), 1), (4 * weights_kib(mod) - 1, 0)):
        after = ChooseAlgorithm(LANES, COST, cache_kib)(mod)
        func = next(f for f in composites(after).values() if f.attrs["layer"] == "second")
        assert func.attrs["weights_quick"] == cached
        costs.append(json.loads(str(func.attrs["costs"]))["direct"])
    assert costs[0] / costs[1] == pytest.approx((36 + 0.5) / (36 + 4.0))  # for 36 pixels


def test_weights_count_as_the_largest_transform_makes_them():
    def body(g, x):
        return g.conv(g.conv(x, 16, 1, "first"), 32, 3, "second", padding=1)

    graph = Graph.build(body, (1, 16, 6, 6))
    mod = sequence(FuseKernels(), AnnotateOpen(), ChooseLowering("auto"))(graph)
    assert weights_kib(mod) == 4 * (16 * 16 + 32 * 16 * 36) / 1024


def test_leaves_what_is_chosen_already_and_plain_functions():
    chosen = ChooseAlgorithm(LANES, COST, NO_CACHE)(annotated("layers_in_a_row"))
    assert_unchanged(ChooseAlgorithm(LANES, Cost(1e6, 1.0, 0.5, 1.0, 1.0), NO_CACHE), chosen)
    graph = Graph.build(CASES["layers_in_a_row"].body, (1, 16, 6, 6))
    assert_unchanged(ChooseAlgorithm(LANES, COST, NO_CACHE), graph)


def test_choices_say_what_and_why():
    mod = ChooseAlgorithm(LANES, COST, NO_CACHE)(annotated("layers_in_a_row"))
    choices = {c.layer: c for c in choices_of(mod["main"], dict(mod.functions_items()))}
    second = choices["second"]
    assert (second.gated, second.lowering) == (True, "indexed")
    assert f"{second.algorithm} 1.00" in second.reason
    assert "direct" in second.reason


def test_costs_count_products_and_transforms():
    free = Cost(0.0, 0.0, 0.5, 0.0, 0.0)
    assert direct_cost(32, 2, 49, (3, 3), free) == 32 * 2 * 49 * 9
    # 7 x 7 pixels are 2 x 2 tiles of 4 x 4, 36 products each.
    dense, gated = (WinogradPlane(7, 7, 4, 3, gated, not gated) for gated in (False, True))
    products = 32 * 2 * 4 * 36
    assert winograd_cost(32, 2, dense, 16, free) == products
    assert winograd_cost(32, 2, dense, 16, Cost(1.0, 0.0, 0.5, 0.0, 0.0)) == products + 4 * 4 * 36
    # Weights come transformed, or are transformed where they are used.
    assert winograd_cost(32, 2, dense, 16, Cost(0.0, 1.0, 0.5, 1.0, 0.0)) == products + 32 * 2 * 36
    assert winograd_cost(32, 2, gated, 16, Cost(0.0, 1.0, 0.5, 0.0, 0.0)) == products + 32 * 2 * 9
    assert winograd_cost(32, 2, gated, 16, Cost(0.0, 0.0, 0.5, 1.0, 0.0)) == products + 32 * 2 * 36
    in_registers = replace(gated, registers=32)
    assert winograd_cost(32, 2, in_registers, 16, free) == products + 32 * 2 * 36 * 0.6
