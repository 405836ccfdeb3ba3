# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import pytest
import tvm

from tests.passes.graphs import CASES
from tests.passes.util import Graph, assert_promises, assert_unchanged, composites, sequence
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tuned import OpenCost, TunedKernel
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.passes.annotate_open import AnnotateOpen
from tvm_dynprune.passes.apply_schedules import ApplySchedules
from tvm_dynprune.passes.choose_algorithm import ChooseAlgorithm, choices_of
from tvm_dynprune.passes.choose_lowering import ChooseLowering
from tvm_dynprune.passes.conv2d_spec import KernelTarget, module_specs
from tvm_dynprune.passes.fuse_kernels import FuseKernels
from tvm_dynprune.soc import Cost

TARGET = KernelTarget(lanes=8, registers=16)
COST = Cost(transform=2.0, weight=4.0, cached_weight=0.5, weight_transform=2.0, gather=20.0)
TUNED = Schedule("winograd_2", sums=8, strip_tiles=16)


def chosen(name: str = "layers_in_a_row", lowering: str = "indexed") -> tvm.IRModule:
    """A network over x (1, 16, 6, 6) whose kernels are chosen."""
    choose = ChooseAlgorithm(TARGET.lanes, COST, 0)
    graph = Graph.build(CASES[name].body, (1, 16, 6, 6))
    return sequence(FuseKernels(), AnnotateOpen(), ChooseLowering(lowering), choose)(graph)


def keys(mod: tvm.IRModule) -> dict[str, str]:
    """Layer → what its kernel is known by."""
    return {composite.layer: workload_key(spec) for composite, spec in module_specs(mod, TARGET)}


def test_a_tuned_kernel_gets_its_schedule_and_the_others_stay():
    before = chosen()
    pass_ = ApplySchedules(TARGET, {keys(before)["second"]: TunedKernel(TUNED)})
    after = assert_promises(pass_, before)
    attrs = {str(f.attrs["layer"]): f.attrs for f in composites(after).values()}
    tuned = [layer for layer, key in keys(before).items() if key == keys(before)["second"]]
    for layer, found in attrs.items():
        assert ("schedule" in found) == (layer in tuned)
    assert attrs["second"]["algorithm"] == "winograd_2"
    assert Schedule.from_json(str(attrs["second"]["schedule"])) == TUNED
    specs = {composite.layer: spec for composite, spec in module_specs(after, TARGET)}
    assert specs["second"].schedule == TUNED
    choices = {c.layer: c for c in choices_of(after["main"], dict(after.functions_items()))}
    assert choices["second"].reason.startswith("tuned: ")


def test_a_kernel_is_known_by_what_it_computes_not_by_its_schedule():
    before = chosen()
    after = ApplySchedules(TARGET, dict.fromkeys(keys(before).values(), TunedKernel(TUNED)))(before)
    assert keys(after) == keys(before)


def test_a_gated_kernel_that_computes_everything_takes_what_was_found_for_the_one_without_gate():
    before = chosen(lowering="dense")
    specs = {composite.layer: spec for composite, spec in module_specs(before, TARGET)}
    gated = [layer for layer, spec in specs.items() if spec.scale]
    assert gated
    found = {
        workload_key(replace(spec, scale=False)): TunedKernel(TUNED) for spec in specs.values()
    }
    after = ApplySchedules(TARGET, found)(before)
    applied = {composite.layer: spec for composite, spec in module_specs(after, TARGET)}
    for layer in gated:
        assert applied[layer] == replace(specs[layer], schedule=TUNED)
    listed = chosen(lowering="indexed")
    for composite, spec in module_specs(ApplySchedules(TARGET, found)(listed), TARGET):
        assert (spec.schedule == TUNED) == (workload_key(spec) in found), composite.layer


@pytest.mark.parametrize("lowering", ["if", "indexed"])
def test_branches_and_kernels_that_nobody_tuned_are_left_alone(lowering):
    mod = chosen(lowering=lowering)
    wanted = {} if lowering == "indexed" else dict.fromkeys(keys(mod).values(), TunedKernel(TUNED))
    gated = [spec for _, spec in module_specs(mod, TARGET) if spec.visit == "group"]
    assert bool(gated) == (lowering == "if")
    if lowering == "indexed":
        assert_unchanged(ApplySchedules(TARGET, wanted), mod)
    else:
        after = ApplySchedules(TARGET, wanted)(mod)
        groups = [s for _, s in module_specs(after, TARGET) if s.visit == "group"]
        assert groups == gated


def costs(**seconds: tuple[float, float, float, float]) -> tuple[OpenCost, ...]:
    """Costs by ``<lowering>_<algorithm>``."""
    names = {name: name.split("_", 1) for name in seconds}
    return tuple(
        OpenCost(lowering, TUNED if algorithm == "winograd_2" else Schedule(algorithm), c, 0.02)
        for name, c in seconds.items()
        for lowering, algorithm in [names[name]]
    )


@pytest.mark.parametrize(
    ("product", "lowering", "algorithm"),
    [
        (0.05, "indexed", "direct"),  # next to no transforms to pay for
        (0.5, "indexed", "winograd_2"),
        (0.98, "dense", "winograd_2"),  # lists cost more than they save
        (None, "indexed", "winograd_2"),  # without calibration what was best when tuning
    ],
)
def test_fitted_times_decide_at_the_open_fractions_of_calibration(product, lowering, algorithm):
    before = chosen("layers_in_a_row")
    layer = next(c.layer for c, s in module_specs(before, TARGET) if s.open_in and s.visit != "all")
    kernel = TunedKernel(
        TUNED,
        costs(
            indexed_direct=(1e-6, 0, 0, 1e-7),
            indexed_winograd_2=(9e-6, 2e-7, 2e-7, 5e-8),
            dense_winograd_2=(9e-5, 0, 0, 0),
        ),
    )
    products = {} if product is None else {layer: product}
    pass_ = ApplySchedules(TARGET, {keys(before)[layer]: kernel}, products)
    after = assert_promises(pass_, before)
    (attrs,) = [f.attrs for f in composites(after).values() if str(f.attrs["layer"]) == layer]
    assert (attrs["lowering"], attrs["algorithm"]) == (lowering, algorithm)
    choices = {c.layer: c for c in choices_of(after["main"], dict(after.functions_items()))}
    assert ("fitted: indexed direct" in choices[layer].reason) == (product is not None)


def test_what_was_best_in_tuning_stays_if_another_is_not_surely_faster():
    slightly = costs(indexed_direct=(0.97e-4, 0, 0, 0), indexed_winograd_2=(1e-4, 0, 0, 0))
    assert TunedKernel(TUNED, slightly).choose(8, 8) == ("indexed", TUNED)
    clearly = costs(indexed_direct=(0.9e-4, 0, 0, 0), indexed_winograd_2=(1e-4, 0, 0, 0))
    assert TunedKernel(TUNED, clearly).choose(8, 8) == ("indexed", Schedule("direct"))
    assert TunedKernel(TUNED).choose(8, 8) == ("indexed", TUNED)


def test_a_conditional_is_never_chosen_by_its_kernels_alone():
    branches = costs(if_direct=(1e-6, 0, 0, 0), indexed_winograd_2=(1e-4, 0, 0, 0))
    assert TunedKernel(TUNED, branches).choose(8, 8) == ("indexed", TUNED)
