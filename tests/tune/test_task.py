# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest

from tests.tune.samples import convolution, masks, task_for
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import spec_of, workload_of
from tvm_dynprune.tune.task import REPRESENTATIVES, TuningTask, representatives


def test_representatives_stand_for_all_inputs():
    spec = convolution(channels=(64, 64))
    open_in, open_out = masks(spec, images=40)
    lists = representatives(spec, [(open_in, open_out)])
    assert len(lists) == REPRESENTATIVES
    assert sum(one.share for one in lists) == pytest.approx(1)
    sizes = [len(one.open_in) * len(one.open_out) for one in lists]
    assert sizes == sorted(sizes)
    pairs = open_in.sum(1) * open_out.sum(1)
    assert TuningTask(spec, ("a",), lists, True).open_fraction == pytest.approx(
        pairs.mean() / 64**2, rel=0.1
    )


def test_a_representative_is_an_input_that_there_was():
    spec = convolution()
    open_in, open_out = masks(spec)
    seen = {
        (tuple(np.flatnonzero(i)), tuple(np.flatnonzero(o)))
        for i, o in zip(open_in, open_out, strict=True)
    }
    for one in representatives(spec, [(open_in, open_out)]):
        assert (tuple(one.open_in), tuple(one.open_out)) in seen


def test_a_kernel_without_lists_has_one_input():
    spec = convolution(visit="all")
    (lists,) = representatives(spec, [masks(spec)])
    assert lists.open_in is None
    assert lists.open_out is None
    task = TuningTask(spec, ("a",), (lists,), True)
    assert task.open_fraction == 1
    assert task.macs == 32 * 48 * 9 * 14 * 14


def test_inputs_of_layers_with_the_same_kernel_are_put_together():
    spec = convolution()
    all_open = np.ones((4, 32), bool), np.ones((4, 48), bool)
    closed = np.zeros((4, 32), bool), np.zeros((4, 48), bool)
    lists = representatives(spec, [all_open, closed])
    assert {len(one.open_in) for one in lists} == {0, 32}


def test_tasks_survive_json():
    task = task_for(convolution(schedule=Schedule("winograd_4", tile=(2, 3))), "a", "b")
    assert TuningTask.from_json(task.to_json()) == task


def test_a_workload_says_everything_but_the_schedule():
    spec = replace(convolution(), residual=convolution().y)
    other = Schedule("winograd_2", quick_weights=True, sums=12)
    assert spec_of(workload_of(spec), other) == replace(spec, schedule=other)
    assert workload_of(replace(spec, schedule=other)) == workload_of(spec)
    assert workload_of(replace(spec, fill=True)) != workload_of(spec)
