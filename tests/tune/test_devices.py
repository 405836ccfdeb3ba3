# SPDX-License-Identifier: Apache-2.0
"""Tuning on the devices of a tracker: emulated phones, and TVM's own servers that come and go."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tvm.rpc.tracker import Tracker
from tvm.support.popen_pool import kill_child_processes

from tests.tune.samples import HOST, convolution, info, task_for
from tvm_dynprune.device import EmulatedDevice, build_bundle
from tvm_dynprune.errors import DeviceError
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.runtime.connect import tracked_devices
from tvm_dynprune.soc import load_soc
from tvm_dynprune.tune.log import read_trials
from tvm_dynprune.tune.progress import Budget
from tvm_dynprune.tune.tuner import tune
from tvm_dynprune.tune.workers import Devices

# Not beside the emulated phones: both keep all cores busy, and phones have deadlines.
pytestmark = pytest.mark.xdist_group("phone")

KEY = "farm"


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    tracker = Tracker("127.0.0.1", 9300, 9400, silent=True)
    yield tracker
    tracker.terminate()


def wait_for(tracker: Tracker, devices: int) -> None:
    """Until so many are registered."""
    deadline = time.monotonic() + 120
    while tracked_devices(f"127.0.0.1:{tracker.port}").get(KEY, (0, 0))[0] < devices:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def start_server(tracker: Tracker, log: Path) -> subprocess.Popen:
    """It logs every module that it is given."""
    place = f"127.0.0.1:{tracker.port}"
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1"]
    with log.open("w") as stream:
        return subprocess.Popen([*command, "--tracker", place, "--key", KEY], stderr=stream)


def kill(server: subprocess.Popen) -> None:
    """With its children, one of which is the session in progress."""
    kill_child_processes(server.pid)
    server.kill()
    server.wait()


@pytest.mark.slow
def test_every_trial_is_accounted_for_while_devices_come_and_go(tracker, tmp_path: Path):
    tasks = [task_for(convolution((32, 32), 14), "a"), task_for(convolution((32, 32), 7), "b")]
    logs = [tmp_path / f"server{number}" for number in range(4)]
    servers = [start_server(tracker, log) for log in logs[:3]]
    wait_for(tracker, 3)
    came_and_went = []

    def disturb(progress) -> None:
        if progress.trials >= 10 and not came_and_went:
            kill(servers[0])
            servers.append(start_server(tracker, logs[3]))
            came_and_went.append(progress.trials)

    try:
        devices = Devices(("127.0.0.1", tracker.port), KEY)
        folder = tmp_path / "log"
        result = tune(tasks, HOST, folder, info(), Budget(trials=40), disturb, devices)
    finally:
        for server in servers:
            kill(server)
    assert came_and_went
    trials = list(read_trials(folder))
    assert len(trials) == result.trials == 40
    assert len({(trial.task, trial.schedule) for trial in trials}) == 40
    assert [trial.failure for trial in trials if trial.failure] == []
    given = [log.read_text().count("load_module") for log in logs]
    assert sum(given) >= 40
    assert min(given) >= 3, given  # of the killed and the added one too


@pytest.mark.slow
def test_without_devices_tuning_ends_and_says_how_to_go_on(tracker, tmp_path: Path):
    tasks = [task_for(convolution((32, 32), 14), "a")]
    server = start_server(tracker, tmp_path / "server")
    wait_for(tracker, 1)

    def disturb(_progress) -> None:
        kill(server)
        tracker.terminate()

    devices = Devices(("127.0.0.1", tracker.port), KEY)
    with pytest.raises(DeviceError, match="no device ran a trial.*tune --resume goes on"):
        tune(tasks, HOST, tmp_path / "log", info(), Budget(trials=20), disturb, devices)
    assert len(list(read_trials(tmp_path / "log"))) >= 1


@pytest.mark.slow
@pytest.mark.phone
def test_two_phones_by_instruction_count_find_the_same_best_twice(tracker, tmp_path: Path):
    soc = load_soc("raspberry-pi-5")
    bundle = tmp_path / "bundle"
    build_bundle(soc, bundle)
    spec = convolution((16, 16), 8, schedule=Schedule("direct"), soc=soc)
    tasks = [task_for(spec, "a")]
    place = f"127.0.0.1:{tracker.port}"
    phone = {"count_instructions": True, "tracker": place, "key": KEY}
    best = []
    with EmulatedDevice(bundle, **phone), EmulatedDevice(bundle, **phone):
        wait_for(tracker, 2)
        for name in ("first", "second"):
            run = info(soc=soc.name, target=dict(soc.target), unit="instructions")
            devices = Devices(("127.0.0.1", tracker.port), KEY)
            result = tune(tasks, soc, tmp_path / name, run, Budget(trials=24), devices=devices)
            (one,) = result.tasks
            assert one.failures == 0
            assert one.best_s < one.own_s
            trials = list(read_trials(tmp_path / name))
            best.append(min(trials, key=lambda trial: trial.expected_s))
    assert (best[0].schedule, best[0].seconds) == (best[1].schedule, best[1].seconds)
