# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings, strategies as st
from tvm.s_tir import Schedule as TvmSchedule

from tests.tune.samples import convolution, task_for
from tvm_dynprune.errors import LogError
from tvm_dynprune.kernels.convolution import Convolution
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.tune.space import (
    BLOCK,
    candidate_of,
    design_spaces,
    own_choice,
    schedule_of,
    schedule_spaces,
    task_of,
    workload_module,
)

MOST_CANDIDATES = 150  # of a kernel: tens of trials have to suffice


def code(spec, schedule: Schedule) -> str:
    """The kernels' TIR."""
    convolution = Convolution(replace(spec, schedule=schedule))
    return convolution.kernel.script() + str(convolution.first)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    st.sampled_from([16, 32, 64, 512]),
    st.integers(1, 60),
    st.sampled_from([(1, 1), (3, 1), (3, 2), (5, 1)]),
    st.sampled_from(["all", "blocks", "gather"]),
    st.sampled_from(["direct", "winograd_2", "winograd_4"]),
    st.booleans(),
)
def test_the_compilers_choice_is_in_the_space(channels, size, kernel, visit, algorithm, quick):
    side, stride = kernel
    if kernel != (3, 1):
        algorithm = "direct"
    spec = convolution((channels, 48), size, side, stride, visit, Schedule(algorithm, quick))
    own = own_choice(task_for(spec))
    assert own.algorithm == algorithm
    assert code(spec, own) == code(spec, spec.schedule)
    count = 0
    for space in schedule_spaces(spec):
        candidates = 1
        for options in space.values():
            assert len({str(option) for option in options}) == len(options)
            candidates *= len(options)
        count += candidates
    assert 1 <= count <= MOST_CANDIDATES


@pytest.mark.parametrize("visit", ["all", "blocks", "gather"])
def test_candidates_are_all_different_and_find_their_way_back(visit):
    task = task_for(convolution((32, 32), 7, visit=visit))
    seen, texts = set(), set()
    for space in schedule_spaces(task.spec):
        for values in product(*space.values()):
            schedule = Schedule(**dict(zip(space, values, strict=True)))
            candidate = candidate_of(task, schedule)
            assert schedule_of(candidate.mod) == schedule
            assert task_of(candidate.mod) == task
            seen.add(schedule)
            texts.add(code(task.spec, schedule))
    assert len(texts) == len(seen)


def test_metaschedule_samples_every_algorithm_and_its_traces_replay():
    module = workload_module(task_for(convolution()))
    sampled = design_spaces(TvmSchedule(module))
    algorithms = [schedule_of(space.mod).algorithm for space in sampled]
    assert set(algorithms) == {"direct", "winograd_2", "winograd_4"}
    for space in sampled:
        again = TvmSchedule(module)
        space.trace.apply_to_schedule(again, remove_postproc=False)
        assert schedule_of(again.mod) == schedule_of(space.mod)


def test_a_record_means_the_same_when_the_spaces_have_changed(monkeypatch):
    task = task_for(convolution())
    schedules = [space for space in schedule_spaces(task.spec) if "sums" in space]
    chosen = Schedule(**{name: options[-1] for name, options in schedules[0].items()})
    trace = candidate_of(task, chosen).trace
    monkeypatch.setattr("tvm_dynprune.tune.space.schedule_spaces", lambda _spec: [])
    again = TvmSchedule(workload_module(task))
    trace.apply_to_schedule(again, remove_postproc=False)
    assert schedule_of(again.mod) == chosen


def test_a_record_of_an_older_version_is_refused():
    schedule = TvmSchedule(workload_module(task_for(convolution())))
    schedule.annotate(schedule.get_sblock(BLOCK), "dynprune.space", 0)
    with pytest.raises(LogError, match="older version"):
        schedule_of(schedule.mod)


def test_what_is_no_candidate_is_refused():
    with pytest.raises(ValueError, match="in no space"):
        candidate_of(task_for(convolution()), Schedule(tile=(1, 99)))
