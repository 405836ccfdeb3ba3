# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace

import numpy as np
import pytest
import tvm

from tests.tune.samples import HOST, convolution, task_for
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.tune.arguments import arguments_of, weights_of
from tvm_dynprune.tune.measure import ROUNDS, build_candidate, run_here
from tvm_dynprune.tune.task import OpenLists

TARGET = {"kind": "llvm", "num-cores": 1, **HOST.target}


@pytest.mark.parametrize("visit", ["all", "blocks", "gather"])
@pytest.mark.parametrize("algorithm", ["direct", "winograd_2"])
def test_builds_and_times_a_candidate(tmp_path, visit, algorithm):
    task = task_for(convolution(visit=visit))
    build_candidate(task.to_json(), Schedule(algorithm).to_json(), TARGET, str(tmp_path))
    seconds = np.array(run_here(str(tmp_path)))
    assert seconds.shape == (ROUNDS, len(task.inputs))
    assert ((seconds > 1e-7) & (seconds < 0.1)).all()


def test_weights_that_are_not_cached_come_from_many_copies():
    spec, tensor = convolution((64, 64)), tvm.runtime.tensor
    assert len(weights_of(spec, tensor, copies=False)) == 1
    copies = weights_of(spec, tensor, copies=True)
    assert len({id(weight) for weight in copies}) == len(copies) > 10


def test_lists_name_the_open_blocks_first():
    spec = convolution((64, 64))
    for lists in task_for(spec).inputs:
        (arguments,) = arguments_of(spec, lists, lambda array: array).kernel("weight")
        items, count = arguments[-3:-1]
        opened = sorted({channel // HOST.lanes for channel in lists.open_out})
        assert items[0, : count[0]].tolist() == opened
        assert sorted(items[0]) == list(range(spec.y.blocks))
        assert arguments[1] == "weight"


def test_a_conditional_is_called_for_each_open_group():
    spec = replace(convolution((64, 64)), open_in=False, visit="group")
    lists = OpenLists(1.0, [0, 1], [*range(HOST.lanes), *range(2 * HOST.lanes, 3 * HOST.lanes)])
    calls = list(arguments_of(spec, lists, lambda array: array).kernel("weight"))
    assert [arguments[-1] for arguments in calls] == [0, 2]
