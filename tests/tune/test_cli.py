# SPDX-License-Identifier: Apache-2.0
"""`tune` as a user types it, and compiling with its log."""

import json
from pathlib import Path

import pytest
import tvm

from tests.test_cli import assert_one_line, run, run_here
from tvm_dynprune import cli_tune
from tvm_dynprune.compiler import choose_kernels
from tvm_dynprune.errors import UserError
from tvm_dynprune.files import sha256
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.kernels.tuned import TunedKernel
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.conv2d_spec import kernel_target, module_specs
from tvm_dynprune.soc import load_soc
from tvm_dynprune.tune.best import read_best
from tvm_dynprune.tune.log import read_info, read_trials

# Not beside the emulated phones: both keep all cores busy, and phones have deadlines.
pytestmark = pytest.mark.xdist_group("phone")


@pytest.fixture(scope="module")
def log(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tune") / "log"
    result = run("tune", onnx_file, "--trials", 14, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "14 trials of 14" in result.stderr
    return out


def test_tune_writes_a_log_that_show_reads(log: Path, tmp_path: Path) -> None:
    assert len(list(read_trials(log))) == 14
    info = read_info(log)
    assert (info.soc, info.unit, info.device) == ("host", "seconds", "here")
    assert "--trials 14" in info.commands[0]
    plots = {option: tmp_path / f"{option}.svg" for option in ("--plot", "--plot-costs")}
    shown = run("tune", "show", log, *(word for plot in plots.items() for word in plot))
    assert "14 trials, 0 failed" in shown.stdout
    assert "held-out open sets" in shown.stdout
    assert all(path.read_text().startswith("<?xml") for path in plots.values())


def test_compiling_with_a_log_takes_its_kernels_and_is_repeatable(log, onnx_file, tmp_path):
    libraries = []
    for name in ("one", "two"):
        out = tmp_path / name
        result = run("compile", onnx_file, "--out", out, "--log", log)
        assert result.returncode == 0, result.stderr
        manifest = json.loads((out / "manifest.json").read_text())
        assert any(choice["reason"].startswith("tuned: ") for choice in manifest["choices"])
        libraries.append(sha256(out / manifest["library"]))
    assert libraries[0] == libraries[1]
    assert len(list(read_trials(log))) == 14


def test_the_kernels_are_those_that_were_recorded(log: Path, onnx_file: Path) -> None:
    soc, best = load_soc("host"), read_best(log)
    model = load_model(onnx_file)
    chosen, _ = choose_kernels(model, soc, None)
    kernels = {workload: TunedKernel(one.schedule) for workload, one in best.items()}
    tuned = pipeline.choose(pipeline.annotate(model.mod), soc, tuned=kernels)
    before = {workload_key(spec) for _, spec in module_specs(chosen, kernel_target(soc), ["main"])}
    assert before == best.keys()
    for _, spec in module_specs(tuned, kernel_target(soc), ["main"]):
        assert spec.schedule == best[workload_key(spec)].schedule
    tvm.ir.assert_structural_equal(pipeline.lower(tuned, soc), pipeline.lower(tuned, soc))


def test_mistakes_are_one_line(log: Path, onnx_file: Path, tmp_path: Path) -> None:
    assert_one_line(run_here("tune", onnx_file), "say when to stop")
    assert_one_line(run_here("tune", onnx_file, "--trials", 9, "--out", log), "exists")
    assert_one_line(run_here("tune", onnx_file, "--trials", 9, "--soc", "raspberry-pi-5"), "lacks")
    lonely = run_here("tune", onnx_file, "--trials", 9, "--key", "phone")
    assert_one_line(lonely, "--tracker and --key go together")
    gone = run_here("tune", onnx_file, "--trials", 9, "--key", "a", "--tracker", "127.0.0.1:1")
    assert_one_line(gone, "127.0.0.1:1")
    compile_ = ("compile", onnx_file, "--out", tmp_path / "artifact", "--log")
    assert_one_line(run_here(*compile_, tmp_path), "no tuning log")
    assert_one_line(run_here(*compile_, log, "--soc", "x86-avx2"), "tune for this SoC")
    assert_one_line(
        run_here(*compile_, log, "--lowering", "indexed"), "--log is for --lowering auto"
    )


@pytest.mark.parametrize(
    ("soc", "info", "told"),
    [
        (
            "tensor-g3",
            {"architecture": "aarch64", "features": ["asimd", "atomics", "asimdhp"]},
            r"--soc tensor-g3 .* under 'phone' of tracker a:1, which lack .*asimddp, .*i8mm: name",
        ),
        (
            "kirin-970",
            {"architecture": "x86_64", "features": []},
            r"--soc kirin-970 .* which lack the architecture \(aarch64; it is x86_64\)",
        ),
        ("kirin-970", {"architecture": "aarch64", "features": ["asimd"], "clock": "time"}, None),
        ("tensor-g3", {}, None),  # TVM's own server says nothing
    ],
)
def test_a_profile_that_lies_is_found_before_the_first_trial(monkeypatch, soc, info, told):
    monkeypatch.setattr("tvm_dynprune.runtime.connect.tracked_devices", lambda _: {"phone": (1, 1)})
    monkeypatch.setattr("tvm_dynprune.tune.measure.describe_device", lambda *_: info)
    if told is None:
        assert cli_tune._devices("a:1", "phone", load_soc(soc))[1] == "seconds"
        return
    with pytest.raises(UserError, match=told):
        cli_tune._devices("a:1", "phone", load_soc(soc))


def test_a_profile_that_lies_about_this_machine(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("Features : fp asimd atomics asimdrdm lrcpc asimdhp\n")
    monkeypatch.setattr("tvm_dynprune.soc.features.CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UserError, match=r"--soc raspberry-pi-5 .* this machine, .* lacks asimddp:"):
        cli_tune._devices(None, None, load_soc("raspberry-pi-5"))
