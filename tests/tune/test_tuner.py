# SPDX-License-Identifier: Apache-2.0
"""Tuning from end to end, here: one run that is resumed, and what fails."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tune.samples import HOST, convolution, info, task_for
from tvm_dynprune.errors import TuningError
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.tune import workers
from tvm_dynprune.tune.best import read_best
from tvm_dynprune.tune.finals import NEAR
from tvm_dynprune.tune.log import FINALS, read_trials
from tvm_dynprune.tune.progress import Budget, Progress
from tvm_dynprune.tune.space import own_choice
from tvm_dynprune.tune.tuner import tune

# Not beside the emulated phones: both keep all cores busy, and phones have deadlines.
pytestmark = pytest.mark.xdist_group("phone")

TASKS = [task_for(convolution((16, 16), 14), "a", "b"), task_for(convolution((16, 16), 7), "c")]
KILLED = """
from pathlib import Path
from tests.tune.samples import HOST, info
from tests.tune.test_tuner import TASKS
from tvm_dynprune.tune.progress import Budget
from tvm_dynprune.tune.tuner import tune
tell = lambda progress: print(progress.trials, flush=True)
tune(TASKS, HOST, Path({folder!r}), info(), Budget(trials=40), tell)
"""


def kill_after(folder: Path, trials: int, delay_s: float) -> int:
    """Start or resume a run, and kill it after some trials; returns how many it reported."""
    command = [sys.executable, "-c", KILLED.format(folder=str(folder))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reported = next(int(line) for line in process.stdout if int(line) >= trials)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        return max([reported, *map(int, process.stdout.read().split())])


@pytest.mark.slow
def test_a_killed_run_is_resumed_and_measures_nothing_twice(tmp_path: Path):
    folder = tmp_path / "log"
    kill_after(folder, 6, 0.0)
    before = list(read_trials(folder))
    seen: list[Progress] = []
    result = tune(TASKS, HOST, folder, info(), Budget(trials=14), seen.append)
    trials = list(read_trials(folder))
    assert trials[: len(before)] == before
    keys = [(trial.task, trial.schedule) for trial in trials]
    assert len(set(keys)) == len(keys)
    assert result.trials == 14
    assert [progress.trials for progress in seen] == sorted(progress.trials for progress in seen)
    for one in result.tasks:
        key = workload_key(one.task.spec)
        best = read_best(folder)[key]
        mine = {t.schedule: t.expected_s for t in trials if t.task == key}
        near = {name: s for name, s in mine.items() if s <= NEAR * min(mine.values())}
        assert best.schedule.to_json() in near
        finals = {t.schedule: t.expected_s for t in read_trials(folder, FINALS) if t.task == key}
        assert bool(finals) == (len(near) > 1)
        assert best.expected_s == pytest.approx(min((finals or mine).values()), rel=1e-6)
        assert one.best_s <= one.own_s
    assert result.expected_s <= result.own_s
    own = {(workload_key(t.spec), own_choice(t).to_json()) for t in TASKS}
    assert set(keys[: len(TASKS)]) == own  # what there is to beat comes first


@pytest.mark.slow
def test_killed_ten_times_it_loses_no_reported_trial_and_ends_as_good(tmp_path: Path):
    rng, folder = random.Random(0), tmp_path / "killed"
    for number in range(10):
        before = list(read_trials(folder))
        reported = kill_after(folder, 3 * number + 1, rng.uniform(0, 0.5))
        trials = list(read_trials(folder))
        assert trials[: len(before)] == before
        assert len(trials) >= reported
    killed, whole = (
        tune(TASKS, HOST, place, info(), Budget(trials=40))
        for place in (folder, tmp_path / "whole")
    )
    assert killed.trials == whole.trials == len(list(read_trials(folder))) == 40
    for one, other in zip(killed.tasks, whole.tasks, strict=True):
        assert one.best_s == pytest.approx(other.best_s, rel=0.25)


def test_a_builder_that_crashes_or_hangs_costs_its_trial(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(workers, "_build", _break_some)
    monkeypatch.setattr(workers, "BUILD_TIMEOUT_S", 6.0)
    written = []

    def record(task, schedule, seconds, failure):
        written.append((schedule.tile, failure))

    pool = workers.Workers({"kind": "llvm"}, [0, 0], lambda *_: None, record)
    task = TASKS[0]
    tiles = [(1, 1), (1, 2), (1, 3), (1, 4)]
    built = pool.build([(task, Schedule(tile=tile)) for tile in tiles])
    failures = [failure for _, failure in built]
    assert failures[0] is None
    assert failures[1] == "building failed: no such kernel"
    assert "building failed" in failures[2]
    assert failures[3] == "building took more than 6 s"
    pool.close()
    assert written == list(zip(tiles[1:], failures[1:], strict=True))


def test_candidates_in_turns_are_built_once_and_a_failure_costs_only_its_own(monkeypatch):
    monkeypatch.setattr(workers, "_build", _build_once)
    monkeypatch.setattr(workers, "run_here", _run_turn)
    pool = workers.Workers({"kind": "llvm"}, [0, 0], lambda *_: None, lambda *_: None)
    tiles = [(1, 1), (1, 2), (1, 3)]
    timed = pool.time_inputs([(TASKS[0], Schedule(tile=tile)) for tile in tiles], turns=3)
    pool.close()
    assert timed[0] == ([2.0, 5.0], None)
    assert timed[1] == (None, "building failed: ValueError: no such kernel")
    assert timed[2] == (None, "running failed: ValueError: lost")


def _build_once(job):
    from pathlib import Path

    tile, folder = Schedule.from_json(job[1]).tile, Path(job[3])
    if tile == (1, 2):
        raise ValueError("no such kernel")
    (folder / "tile").write_text(str(tile[1]))
    return str(folder)


def _run_turn(folder):
    """Two inputs, of which the first one takes as many seconds as it ran; 3 fails in turn 2."""
    from pathlib import Path

    with (Path(folder) / "turns").open("a+") as turns:
        turns.write(".")
        turns.flush()
        turns.seek(0)
        turn = len(turns.read())
    if turn == 2 and (Path(folder) / "tile").read_text() == "3":
        raise ValueError("lost")
    return [[float(turn), 5.0]]


def _break_some(job):
    import os
    import time

    tile = Schedule.from_json(job[1]).tile
    if tile == (1, 2):
        raise ValueError("line one\nno such kernel")
    if tile == (1, 3):
        os._exit(11)
    if tile == (1, 4):
        time.sleep(60)
    return job[3]


def test_if_nothing_runs_tuning_says_so(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(workers, "_build", _break_all)
    with pytest.raises(TuningError, match="a, b: all 1 trials failed.*no compiler.*has them all"):
        tune(TASKS, HOST, tmp_path / "log", info(), Budget(trials=2))


def _break_all(_job):
    raise OSError("no compiler")
