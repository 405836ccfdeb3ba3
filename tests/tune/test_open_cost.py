# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from tests.tune.samples import HOST, convolution, info, task_for
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tuned import OpenCost
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.tune.log import Trial, TuningLog, rank_trials
from tvm_dynprune.tune.open_cost import (
    append_costs,
    break_even,
    fit,
    forms_of,
    read_costs,
    read_tuned,
)
from tvm_dynprune.tune.space import own_choice
from tvm_dynprune.tune.task import OpenLists
from tvm_dynprune.tune.workers import Workers

TASK = task_for(convolution((8 * HOST.lanes, 4 * HOST.lanes)))
TARGET = {"kind": "llvm", "num-cores": 1, **HOST.target}


def trials(task=TASK) -> list[Trial]:
    """Two schedules of each algorithm, the second one faster; fastest first."""
    schedules = [Schedule(tile=(1, 4)), Schedule(tile=(2, 4)), Schedule("winograd_2"), FAST]
    measured = [
        Trial(workload_key(task.spec), schedule.to_json(), 0.0, [seconds])
        for schedule, seconds in zip(schedules, (4e-4, 3e-4, 2e-4, 1e-4), strict=True)
    ]
    return rank_trials(measured, ())


FAST = Schedule("winograd_4", sums=8)


def test_the_fastest_of_each_algorithm_is_timed_in_all_forms():
    forms = forms_of(TASK, trials())
    found = {(form.lowering, form.schedule) for form in forms}
    direct = Schedule(tile=(2, 4))
    expected = {(low, s) for low in ("indexed", "dense") for s in (direct, FAST)}
    assert found == expected | {("if", Schedule())}
    assert forms_of(task_for(convolution(visit="all")), trials()) == []


@pytest.mark.parametrize("visit", ["blocks", "gather"])
def test_open_lists_are_whole_groups_and_some_are_held_out(visit):
    task = task_for(convolution((8 * HOST.lanes, 4 * HOST.lanes), visit=visit))
    listed = [form for form in forms_of(task, trials(task)) if form.lowering == "indexed"]
    unit = HOST.lanes if visit == "blocks" else 1
    counts = set()
    for lists in listed[0].task.inputs:
        for channels in (lists.open_in, lists.open_out):
            groups = sorted({channel // unit for channel in channels})
            assert channels == [group * unit + i for group in groups for i in range(unit)]
        counts.add((len(lists.open_in), len(lists.open_out)))
    assert (task.spec.x.channels, task.spec.y.channels) in counts
    assert len(listed[0].task.inputs) == 3 * 3 + 6
    assert sum(lists.share for lists in listed[0].task.inputs) == pytest.approx(1)


def test_a_fit_finds_the_coefficients_and_its_error_is_that_of_other_sets():
    form = forms_of(TASK, trials())[0]
    counts = [(len(lists.open_in), len(lists.open_out)) for lists in form.task.inputs]
    true = np.array([1e-6, 2e-8, 3e-8, 4e-9])
    seconds = [float(true @ [1, a, b, a * b]) for a, b in counts]
    exact = fit(form, TASK, seconds, None)
    assert exact.error < 1e-6
    assert exact.coefficients == pytest.approx(true, rel=1e-3)
    held_out = len(counts) - exact.held_out
    wrong = fit(form, TASK, [*seconds[:held_out], *(2 * s for s in seconds[held_out:])], None)
    assert wrong.coefficients == exact.coefficients
    assert wrong.error == pytest.approx(0.5)


def test_costs_are_kept_with_the_log_and_a_failure_too(tmp_path):
    log = TuningLog(tmp_path, info())
    own = own_choice(TASK)
    log.append(TASK, own, [1e-3], None)
    log.close()
    forms = forms_of(TASK, rank_trials(log.trials, ()))
    fits = [fit(form, TASK, [1e-3] * len(form.task.inputs), None) for form in forms[:-1]]
    append_costs(tmp_path, [*fits, fit(forms[-1], TASK, None, "building failed: no such kernel")])
    assert [trial.failure is None for trial in read_costs(tmp_path)] == [True] * len(fits) + [False]
    (kernel,) = read_tuned(tmp_path).values()
    assert kernel.schedule == own
    assert [cost.lowering for cost in kernel.costs] == [form.lowering for form in forms[:-1]]
    assert kernel.costs[0].seconds(8, 8) == pytest.approx(1e-3)


def test_forms_are_built_and_timed_at_each_of_their_lists(tmp_path):
    task = replace(task_for(convolution((32, 32), 7)), inputs=(OpenLists(1.0, [0], [0]),))
    forms = forms_of(task, ())
    workers = Workers(TARGET, [0, 0], lambda *_: None, lambda *_: None)
    timed = workers.time_inputs([(form.task, form.schedule) for form in forms])
    workers.close()
    assert [form.lowering for form in forms] == ["indexed", "dense", "if"]
    for form, (seconds, failure) in zip(forms, timed, strict=True):
        assert failure is None
        assert len(seconds) == len(form.task.inputs)
        assert all(1e-7 < value < 0.1 for value in seconds)


def test_a_dense_kernel_is_faster_from_the_break_even_on():
    def cost(lowering: str, *coefficients: float) -> OpenCost:
        return OpenCost(lowering, Schedule(), coefficients, 0.01)

    pairs = TASK.spec.x.channels * TASK.spec.y.channels
    lists, dense = cost("indexed", 2e-5, 0, 0, 1e-4 / pairs), cost("dense", 1e-4, 0, 0, 0)
    assert break_even([lists, dense], TASK.spec) == pytest.approx(0.8, abs=0.011)
    assert break_even([cost("indexed", 0, 0, 0, 9e-5 / pairs), dense], TASK.spec) == 1.0
    assert break_even([lists], TASK.spec) == 1.0
