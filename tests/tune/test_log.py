# SPDX-License-Identifier: Apache-2.0
import json
import logging
from pathlib import Path

import pytest

from tests.tune.samples import HOST, convolution, info, task_for
from tvm_dynprune.errors import LogError, OutputExistsError
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.tune.best import prune_log, read_best
from tvm_dynprune.tune.curve import tuning_curve
from tvm_dynprune.tune.log import FINALS, RUN, TRIALS, TuningLog, check_info, read_info, read_trials
from tvm_dynprune.tune.merge import merge_logs
from tvm_dynprune.tune.open_cost import OpenCostTrial, append_costs, read_costs
from tvm_dynprune.tune.space import own_choice, schedule_spaces

TASK = task_for(convolution(), "a", "b")


def tiled(tile: tuple[int, int]) -> Schedule:
    return Schedule(tile=tile)


OTHER = task_for(convolution(size=7), "c")
FAST, SLOW, BROKEN, NEW = map(tiled, schedule_spaces(TASK.spec)[0]["tile"][1:5])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of two kernels: four trials, one of which failed."""
    log = TuningLog(tmp_path / "log", info())
    log.append(TASK, SLOW, [3e-3, 4e-3], None)
    log.append(OTHER, own_choice(OTHER), [5e-3], None)
    log.append(TASK, BROKEN, None, "building failed: no space left")
    log.append(TASK, FAST, [1e-3, 2e-3], None)
    log.close()
    return tmp_path / "log"


def test_the_best_trial_of_each_kernel_is_found(folder):
    best = read_best(folder)
    assert best.keys() == {workload_key(TASK.spec), workload_key(OTHER.spec)}
    found = best[workload_key(TASK.spec)]
    assert (found.task, found.schedule.tile) == (TASK, FAST.tile)
    assert found.expected_s == pytest.approx(1.5e-3)


def test_times_of_finals_decide_before_those_of_trials(folder, tmp_path):
    log = TuningLog(folder, info())
    log.append(TASK, NEW, [1.6e-3], None)
    log.append_finals(TASK, {FAST: 1.7e-3, NEW: 1.65e-3})
    log.close()
    with (folder / FINALS).open("a", encoding="utf-8") as stream:
        stream.write('["torn')
    best = read_best(folder)
    found = best[workload_key(TASK.spec)]
    assert (found.schedule, found.expected_s) == (NEW, 1.65e-3)
    assert best[workload_key(OTHER.spec)].expected_s == pytest.approx(5e-3)
    merge_logs([folder], tmp_path / "merged")
    assert read_best(tmp_path / "merged") == best
    assert prune_log(folder, keep=1) == (4, 2)
    assert read_best(folder) == best


def test_a_failed_trial_is_kept_with_its_reason(folder):
    failed = [trial for trial in read_trials(folder) if trial.failure]
    assert [trial.failure for trial in failed] == ["building failed: no space left"]
    assert failed[0].expected_s == float("inf")


def test_a_log_is_continued(folder):
    log = TuningLog(folder, info(commands=["again"]))
    assert log.find(TASK, FAST).seconds == [1e-3, 2e-3]
    assert log.find(TASK, NEW) is None
    log.append(TASK, NEW, [5e-4], None)
    log.close()
    assert read_best(folder)[workload_key(TASK.spec)].schedule == NEW
    assert len(list(read_trials(folder))) == 5
    assert read_info(folder).commands == ["again"]


@pytest.mark.parametrize("name", [TRIALS, "database_workload.json", "database_tuning_record.json"])
def test_a_torn_last_line_is_left_out_and_the_rest_is_used(folder, name, caplog):
    with (folder / name).open("a", encoding="utf-8") as stream:
        stream.write('["torn')
    with caplog.at_level(logging.WARNING):
        assert len(list(read_trials(folder))) == 4
        assert len(read_best(folder)) == 2
    assert "torn" in caplog.text
    log = TuningLog(folder, info())
    log.append(TASK, NEW, [5e-4], None)
    log.close()
    assert len(list(read_trials(folder))) == 5
    assert read_best(folder)[workload_key(TASK.spec)].expected_s == 5e-4


@pytest.mark.parametrize("change", [{"network": "another"}, {"seed": 7}])
def test_the_log_of_something_else_is_not_continued(folder, change):
    with pytest.raises(LogError, match="holds a log of net, seed 0"):
        TuningLog(folder, info(**change))


def test_a_log_of_another_version_or_target_is_refused(folder):
    check_info(folder, read_info(folder), dict(HOST.target))
    with pytest.raises(LogError, match=r"log of TVM 0.1.0, this is .*: tune again"):
        check_info(folder, info(tvm="0.1.0"), dict(HOST.target))
    with pytest.raises(LogError, match="not cortex-a76: tune for this SoC"):
        check_info(folder, read_info(folder), {"mtriple": "aarch64", "mcpu": "cortex-a76"})


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(LogError, match="no tuning log"):
        read_best(tmp_path)
    (tmp_path / RUN).write_text(json.dumps({"network": "net"}))
    with pytest.raises(LogError, match="damaged or of another version"):
        read_info(tmp_path)


def test_a_log_without_a_trial_that_ran_is_refused(tmp_path):
    log = TuningLog(tmp_path, info())
    log.append(TASK, FAST, None, "running took more than 30 s")
    log.close()
    with pytest.raises(LogError, match="no trial of this log ran"):
        read_best(tmp_path)


def test_the_curve_begins_when_all_kernels_are_measured_and_falls(folder):
    curve = tuning_curve(read_best(folder).values(), list(read_trials(folder)))
    expected = [(2, 2 * 3.5 + 5), (3, 2 * 3.5 + 5), (4, 2 * 1.5 + 5)]
    assert [(number, pytest.approx(ms)) for number, _, ms in curve] == expected


def test_pruning_keeps_the_best_records_and_all_trials(folder):
    before = read_best(folder)
    assert prune_log(folder, keep=1) == (3, 2)
    assert read_best(folder) == before
    assert len(list(read_trials(folder))) == 4
    log = TuningLog(folder, info())
    assert log.find(TASK, SLOW) is not None
    log.close()


def test_a_merged_log_has_each_trial_once_and_the_best_of_all(folder, tmp_path):
    second = TuningLog(tmp_path / "second", info(network="another", seed=7))
    second.append(TASK, NEW, [5e-4], None)
    second.append(OTHER, own_choice(OTHER), [6e-3], None)
    second.close()
    both, merged = [folder, tmp_path / "second"], tmp_path / "merged"
    for place, error in zip(both, (0.01, 0.02), strict=True):
        cost = OpenCostTrial(workload_key(TASK.spec), "dense", "{}", [], 0, [1e-3, 0, 0, 0], error)
        append_costs(place, [cost])
    assert merge_logs([*both, folder], merged) == (6, 5)
    assert [cost.error for cost in read_costs(merged)] == [0.01]  # of the first that has them
    best = read_best(merged)
    assert best[workload_key(TASK.spec)].schedule.tile == NEW.tile
    assert best[workload_key(OTHER.spec)].expected_s == pytest.approx(5e-3)
    assert read_info(merged).network == "net+another"
    times = [trial.at_s for trial in read_trials(merged)]
    assert times == sorted(times)


def test_logs_that_say_nothing_about_each_other_are_not_merged(folder, tmp_path):
    arm = {"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}
    for name, change, message in (
        ("arm", {"target": arm}, "tune for this SoC"),
        ("emulated", {"unit": "instructions"}, "a log of instructions, .* is one of seconds"),
    ):
        TuningLog(tmp_path / name, info(**change)).close()
        with pytest.raises(LogError, match=message):
            merge_logs([folder, tmp_path / name], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(LogError, match="no tuning log"):
        merge_logs([folder, tmp_path / "nothing"], tmp_path / "merged")


def test_an_existing_log_is_not_replaced_by_a_merge(folder):
    with pytest.raises(OutputExistsError, match="exists"):
        merge_logs([folder], folder)
    assert len(list(read_trials(folder))) == 4
