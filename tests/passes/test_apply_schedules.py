# SPDX-License-Identifier: Apache-2.0
import pytest
import tvm

from tests.passes.graphs import CASES
from tests.passes.util import Graph, assert_promises, assert_unchanged, composites, sequence
from tvm_dynprune.kernels.schedule import Schedule
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
    pass_ = ApplySchedules(TARGET, {keys(before)["second"]: TUNED})
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
    after = ApplySchedules(TARGET, dict.fromkeys(keys(before).values(), TUNED))(before)
    assert keys(after) == keys(before)


@pytest.mark.parametrize("lowering", ["if", "indexed"])
def test_branches_and_kernels_that_nobody_tuned_are_left_alone(lowering):
    mod = chosen(lowering=lowering)
    wanted = {} if lowering == "indexed" else dict.fromkeys(keys(mod).values(), TUNED)
    gated = [spec for _, spec in module_specs(mod, TARGET) if spec.visit == "group"]
    assert bool(gated) == (lowering == "if")
    if lowering == "indexed":
        assert_unchanged(ApplySchedules(TARGET, wanted), mod)
    else:
        after = ApplySchedules(TARGET, wanted)(mod)
        groups = [s for _, s in module_specs(after, TARGET) if s.visit == "group"]
        assert groups == gated
