# SPDX-License-Identifier: Apache-2.0
"""A phone from end to end, under QEMU: bundle, tracker, upload, run, profile, crash."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from rich.console import Console
from tvm import tirx
from tvm.rpc.tracker import Tracker
from tvm.script import tirx as T

from tvm_dynprune.bench.device import measure_device_bench
from tvm_dynprune.bench.forced import Gating, compile_forced, force_gates
from tvm_dynprune.bench.run import as_input, measure_run, write_json
from tvm_dynprune.compiler import compile
from tvm_dynprune.data import load_images
from tvm_dynprune.device import EmulatedDevice, build_bundle
from tvm_dynprune.device.bundle import LOADER, SERVER
from tvm_dynprune.device.linker import link_library
from tvm_dynprune.errors import DeviceBusyError, DeviceError
from tvm_dynprune.files import shipped
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.report import write_report
from tvm_dynprune.runtime import Artifact, Session
from tvm_dynprune.runtime.connect import connect, query_device, tracked_devices
from tvm_dynprune.runtime.rpc import Device
from tvm_dynprune.soc import load_soc
from tvm_dynprune.tables import bench_table

pytestmark = [pytest.mark.phone, pytest.mark.xdist_group("phone")]

PHONE = "raspberry-pi-5"  # cortex-a76
MOST_BYTES = 15 << 20


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("device") / "bundle"
    files = build_bundle(load_soc(PHONE), out)
    assert sum(file.size_bytes for file in files) <= MOST_BYTES
    return out


@pytest.fixture(scope="session")
def counting(bundle: Path) -> Iterator[EmulatedDevice]:
    with EmulatedDevice(bundle, count_instructions=True) as device:
        yield device


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """The demo network for the phone, and for this machine."""
    model = load_model(shipped("demo") / "fashion_cnn_lkam.onnx")
    out = tmp_path_factory.mktemp("demo")
    return compile(model, load_soc(PHONE), out / "phone"), compile(
        model, load_soc("host"), out / "host"
    )


@pytest.fixture(scope="session")
def sample() -> np.ndarray:
    return load_images(shipped("demo") / "fashion-mnist-sample", "test").images[:20]


@pytest.mark.parametrize("page_bytes", [4096, 16384])
def test_computes_what_the_host_does(bundle, demo, sample, page_bytes) -> None:
    tracker = Tracker("127.0.0.1", 9300, 9400, silent=True)
    place = f"127.0.0.1:{tracker.port}"
    try:
        with EmulatedDevice(bundle, page_bytes=page_bytes, tracker=place, key="phone"):
            with connect(tracker=place, key="phone", wait_s=20) as phone:
                assert phone.info.page_bytes == page_bytes
                there, here = Session(demo[0], device=phone), Session(demo[1])
                x = as_input(sample)
                wanted = here.run(x)
                error = np.abs(there.run(x) - wanted).max() / np.abs(wanted).max()
                assert error <= 1e-4
                for mine, its in zip(here.open_channels, there.open_channels, strict=True):
                    np.testing.assert_array_equal(its, mine)
                assert there.self_test().ok
                with pytest.raises(DeviceBusyError, match="1 under key 'phone', none free"):
                    connect(tracker=place, key="phone")
                assert tracked_devices(place) == {"phone": (1, 0)}
            with pytest.raises(DeviceError, match="nothing under key 'tablet': it has phone"):
                connect(tracker=place, key="tablet")
            with connect(tracker=place, key="phone", wait_s=20):
                pass  # it is free again
    finally:
        tracker.terminate()


def test_a_process_without_a_compiler_runs_there(counting, demo) -> None:
    command = ["run", str(demo[0].path), "--self-test", "--device", counting.address]
    done = subprocess.run(
        [sys.executable, "-m", "tvm_dynprune", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "self-test passed" in done.stdout, done.stderr


def test_instructions_fall_with_the_open_fraction(counting, demo, sample, tmp_path) -> None:
    with connect(counting.address) as phone:
        result = measure_run(demo[0], sample, device=phone)
        assert result["device"]["clock"] == "instructions"
        assert result["latency_ms"] == []
        gated, dense = np.array(result["instructions"]), np.array(result["instructions_dense"])
        assert np.ptp(dense) / dense.mean() < 1e-3
        assert np.corrcoef(gated, result["macs"])[0, 1] > 0.95
        again = measure_run(demo[0], sample[:3], device=phone)
        np.testing.assert_allclose(again["instructions"], gated[:3], rtol=1e-3)
    write_json(result, tmp_path / "run.json")
    write_report([tmp_path / "run.json"], tmp_path / "report.html")
    assert "M instructions" in (tmp_path / "report.html").read_text()


def test_what_gates_save_is_realised(counting, tmp_path) -> None:
    forced = force_gates("fashion_cnn", Gating(group_size=16, mac_cut=0.7), inputs=3)
    artifact = compile_forced(forced, tmp_path / "artifact", soc=PHONE, lowering="indexed")
    with connect(counting.address) as phone:
        result = measure_device_bench(artifact, forced.images, phone, forced=True)
    assert result["mac_cut"] == pytest.approx(0.7, abs=0.02)
    assert result["realised_fraction"] >= 0.9
    assert result["max_abs_error"] < 1e-5
    assert result["engines"]["dynprune"]["runs"] == 3
    shown = Console(width=200)
    with shown.capture() as capture:
        shown.print(bench_table(result))
    assert "median M instr." in capture.get()


def test_float16_computes_the_same_in_half_of_the_time(counting, demo, sample, tmp_path) -> None:
    model = load_model(shipped("demo") / "fashion_cnn_lkam.onnx")
    half = compile(model, load_soc(PHONE), tmp_path / "half", precision="float16")
    x = as_input(sample[:4])
    with connect(counting.address) as phone:
        single_session, half_session = (Session(a, device=phone) for a in (demo[0], half))
        assert half_session.self_test().ok
        wanted, got = single_session.run_dense(x), half_session.run_dense(x)
        assert np.abs(got - wanted).max() <= 1e-2 * np.abs(wanted).max()
        before, after = (
            s.device_ticks(x[:1], function="dense")[0] for s in (single_session, half_session)
        )
    assert after <= 0.65 * before


def test_profile_lists_the_kernels_of_the_manifest(counting, demo, sample) -> None:
    with connect(counting.address) as phone:
        session = Session(demo[0], device=phone)
        x = as_input(sample[:1])
        for function in ("main", "dense"):
            planned = [name for name, _ in demo[0].manifest.kernels[function]]
            profile = session.kernel_ticks(x, function=function)
            assert [name for name, _ in profile if name in planned] == planned
            (whole,) = session.device_ticks(x, function=function)
            assert sum(ticks for _, ticks in profile) == pytest.approx(whole, rel=0.1)


def test_uploads_only_what_is_not_there(counting, demo, monkeypatch) -> None:
    with connect(counting.address) as phone:
        Session(demo[0], device=phone)
        monkeypatch.setattr(phone._session, "upload", None)
        Session(demo[0], device=phone)


def test_a_processor_that_lacks_features_refuses_before_the_upload(
    bundle, demo, monkeypatch
) -> None:
    with EmulatedDevice(bundle, cpu="cortex-a53") as device, connect(device.address) as phone:
        monkeypatch.setattr(phone._session, "upload", None)
        with pytest.raises(DeviceError, match=r"lacks .*asimdhp.*\(aarch64-generic runs"):
            Session(demo[0], device=phone)


def test_a_network_for_another_architecture_or_too_large_is_refused(counting, demo) -> None:
    with connect(counting.address) as phone:
        with pytest.raises(DeviceError, match=r"built for x86_64, .* is aarch64"):
            Session(demo[1], device=phone)
        phone.info = replace(phone.info, memory_free_kib=1)
        with pytest.raises(DeviceError, match="has 0 MiB of memory free"):
            Session(demo[0], device=phone)
        phone.info = replace(phone.info, memory_kib=0, memory_free_kib=0)  # unknown
        Session(demo[0], device=phone)


def crashing(folder: Path) -> Path:
    @T.prim_func
    def crash(x: T.Buffer((1,), "float32")):
        T.evaluate(T.call_extern("void", "abort"))

    assert isinstance(crash, tirx.PrimFunc)
    target = load_soc(PHONE)
    module = tvm.IRModule({"crash": crash.with_attr("global_symbol", "crash")})
    path = folder / "crash.so"
    linker = link_library(target.target["mtriple"])
    tvm.compile(module, target.tvm_target()).export_library(str(path), fcompile=linker)
    return path


def crash(phone: Device, library: Path) -> None:
    phone._upload(library)
    with phone._calling("crashing"):
        x = tvm.runtime.tensor(np.zeros(1, "float32"), phone._session.cpu(0))
        phone._session.load_module(library.name)["crash"](x)


def test_a_crash_is_told_and_the_server_goes_on(counting, demo, sample, tmp_path) -> None:
    path = crashing(tmp_path)
    with connect(counting.address) as phone:
        with pytest.raises(DeviceError, match=r"ended by signal 6 \(Aborted\)") as raised:
            crash(phone, path)
        assert "\n" not in str(raised.value)
    with connect(counting.address, wait_s=5) as phone:
        assert Session(demo[0], device=phone).run(as_input(sample[:1])).shape == (1, 10)


def test_busy_says_so_and_waiting_helps(counting) -> None:
    with connect(counting.address):
        assert query_device(counting.address)[1] is not None
        with pytest.raises(DeviceBusyError, match=r"has had it for \d+ s; --wait"):
            connect(counting.address)
    with connect(counting.address, wait_s=5):
        pass


def test_a_session_ends_when_its_time_is_over(counting, demo, sample) -> None:
    with connect(counting.address, session_s=1) as phone:
        session = Session(demo[0], device=phone)
        time.sleep(2)
        with pytest.raises(DeviceError, match=r"the session's 1 s are over|connection was lost"):
            session.run(as_input(sample[:1]))


def test_a_device_that_vanishes_is_one_line(bundle, demo, sample) -> None:
    with EmulatedDevice(bundle) as device:
        with connect(device.address) as phone:
            session = Session(demo[0], device=phone)
            device.stop()
            with pytest.raises(DeviceError, match="the connection was lost"):
                session.run(as_input(sample[:1]))
        with pytest.raises(DeviceError, match="no device server answers"):
            connect(device.address)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "localhost"], "an IPv4 address as 127.0.0.1"),
        (["--prt", "9090"], "--prt: options are --host --port"),
        (["--port"], "each with a value"),
        (["--key", "phone"], "--tracker and --key go together"),
    ],
)
def test_the_server_refuses_what_it_does_not_know(bundle, options, told) -> None:
    command = ["qemu-aarch64", bundle / LOADER, "--library-path", bundle, bundle / SERVER]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
