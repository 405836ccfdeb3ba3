# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import tvm

from tests.tune.samples import HOST, convolution, task_for
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.tune.arguments import arguments_of
from tvm_dynprune.tune.measure import ROUNDS, build_candidate, run_here

TARGET = {"kind": "llvm", "num-cores": 1, **HOST.target}


@pytest.mark.parametrize("visit", ["all", "blocks", "gather"])
@pytest.mark.parametrize("algorithm", ["direct", "winograd_2"])
def test_builds_and_times_a_candidate(tmp_path, visit, algorithm):
    task = task_for(convolution(visit=visit))
    build_candidate(task.to_json(), Schedule(algorithm).to_json(), TARGET, str(tmp_path))
    seconds = run_here(str(tmp_path))
    assert len(seconds) == ROUNDS
    assert all(1e-7 < value < 0.1 for value in seconds)


def test_weights_that_are_not_cached_come_from_many_copies():
    spec = convolution((64, 64))
    lists = task_for(spec).inputs[0]
    tensor = tvm.runtime.tensor
    assert len(arguments_of(spec, lists, tensor, copies=False).kernel) == 1
    copies = arguments_of(spec, lists, tensor, copies=True).kernel
    assert len({id(arguments[1]) for arguments in copies}) == len(copies) > 10


def test_lists_name_the_open_blocks_first():
    spec = convolution((64, 64))
    for lists in task_for(spec).inputs:
        (arguments,) = arguments_of(spec, lists, lambda array: array, copies=False).kernel
        items, count = arguments[-3:-1]
        opened = sorted({channel // HOST.lanes for channel in lists.open_out})
        assert items[0, : count[0]].tolist() == opened
        assert sorted(items[0]) == list(range(spec.y.blocks))
        assert isinstance(arguments[0], np.ndarray)
