# SPDX-License-Identifier: Apache-2.0
"""The command line as a user types it, in a process of its own unless many are tried."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
from PIL import Image

from tvm_dynprune import cli
from tvm_dynprune.runtime import Artifact

# A shipped SoC of another architecture than the machine that runs the tests.


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tvm_dynprune", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As `run`, in this process, which has imported what takes seconds."""
    out, errors, status = io.StringIO(), io.StringIO(), None
    with patch("sys.argv", ["tvm-dynprune", *map(str, arguments)]):
        with redirect_stdout(out), redirect_stderr(errors):
            try:
                cli.main()
            except SystemExit as exit_:
                status = exit_.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(sys.argv, status, out.getvalue(), errors.getvalue())


def assert_one_line(result: subprocess.CompletedProcess[str], text: str) -> None:
    """A user's mistake: exit status 2, one line, no traceback."""
    assert result.returncode == 2, result.stderr
    assert text in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.returncode == 0
    for command in "demo train export compile tune run bench report socs doctor".split():
        assert command in result.stdout


def test_socs_and_doctor() -> None:
    assert "raspberry-pi-5" in run("socs").stdout
    result = run("doctor")
    assert result.returncode == 0, result.stdout
    assert "C++ compiler" in result.stdout


def test_compile_run_and_report(onnx_file: Path, class_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    compiled = run(
        "compile", onnx_file, "--out", out, "--lowering", "indexed", "--time-passes", "--explain"
    )
    assert compiled.returncode == 0, compiled.stderr
    assert "2 gates" in compiled.stdout
    assert "LowerKernels" in compiled.stdout
    assert "no other candidate" in compiled.stdout
    measured = run("run", out, "--data", class_folders, "--json", tmp_path / "run.json")
    assert measured.returncode == 0, measured.stderr
    assert "realised fraction" in measured.stdout or "MAC cut" in measured.stdout
    result = json.loads((tmp_path / "run.json").read_text())
    assert result["images"] == 8
    assert len(result["latency_ms"]) == len(result["latency_dense_ms"]) == 8
    assert result["classes"] == ["ant", "bee", "cat", "dog"]
    page = run("report", tmp_path / "run.json", "--out", tmp_path / "report.html")
    assert page.returncode == 0, page.stderr
    assert "<svg" in (tmp_path / "report.html").read_text()


def test_run_json_prints_one_object_and_nothing_else(
    artifact: Artifact, class_folders: Path
) -> None:
    image = class_folders / "test" / "ant" / "0.png"
    result = run("run", artifact.path, "--image", image, "--threshold", "-100", "--json", "-")
    assert result.returncode == 0, result.stderr
    measurement = json.loads(result.stdout)
    assert measurement["open_fraction"] == [1.0]
    closed = run("run", artifact.path, "--image", image, "--threshold", "100", "--json", "-")
    assert json.loads(closed.stdout)["macs"][0] < measurement["macs"][0]


def test_self_test(artifact: Artifact) -> None:
    result = run("run", artifact.path, "--self-test")
    assert result.returncode == 0
    assert "self-test passed" in result.stdout


def test_bench_of_an_artifact(artifact: Artifact) -> None:
    result = run("bench", artifact.path, "--rounds", "2", "--inputs", "2", "--json", "-")
    assert result.returncode == 0, result.stderr
    measurement = json.loads(result.stdout)
    assert set(measurement["engines"]) == {"dynprune", "dynprune_dense"}
    assert measurement["engines"]["dynprune"]["runs"] == 12
    assert measurement["provenance"]["command"].startswith("tvm-dynprune bench")


def test_an_image_of_the_wrong_size(artifact: Artifact, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "small.png")
    assert_one_line(run("run", artifact.path, "--image", tmp_path / "small.png"), "9")
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(tmp_path / "colour.png")
    assert_one_line(run("run", artifact.path, "--image", tmp_path / "colour.png"), "colour.png")


def test_bad_input_is_one_line(onnx_file: Path, artifact: Artifact, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    new = tmp_path / "new"
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    (tmp_path / "bad.pt2").write_bytes(b"no model")
    cases = [
        (["compile", onnx_file, "--out", taken], "--force"),
        (["compile", onnx_file, "--out", new, "--soc", "pdp-11"], "raspberry-pi-5"),
        (["compile", onnx_file, "--out", new, "--lowering", "fast"], "indexed"),
        (["compile", tmp_path / "bad.onnx", "--out", new], "not a readable ONNX file"),
        (["compile", tmp_path / "bad.pt2", "--out", new], "not a torch.export file"),
        (["run", artifact.path, "--data", taken], str(taken)),
        (["run", artifact.path], "--data DIR or --image FILE"),
        (["run", taken, "--self-test"], "no artifact"),
        (["export", taken, "--out", tmp_path / "m.onnx"], "no checkpoint"),
        (["train", "--data", taken, "--out", new], str(taken)),
        (["run", artifact.path, "--self-test", "--device", "phone"], "an address is HOST:PORT"),
        (["run", artifact.path, "--self-test", "--tracker", "127.0.0.1:9"], "with --key KEY"),
        (["device", "bundle", "--soc", "x86-avx2", "--out", new], "64-bit ARM"),
        (["device", "emulate", taken, "--cpu", "z80"], "cortex-a76"),
        (["device", "emulate", taken, "--tracker", "127.0.0.1:9"], "--tracker and --key"),
        (["device", "list", "--tracker", "127.0.0.1:9"], "no tracker answers there"),
        (["device", "info", "127.0.0.1:9"], "no device server answers there"),
        (["bench", artifact.path, "--device", "127.0.0.1:9"], "no device server answers there"),
        (["bench", "lenet"], "vgg16_bn"),
        (["bench", "vgg16_bn", "--against", "fast"], "onnxruntime,openvino"),
        (["report", tmp_path / "none.json"], "none.json"),
    ]
    for arguments, text in cases:
        assert_one_line(run_here(*arguments), text)
    assert_one_line(run(*cases[0][0]), cases[0][1])
    assert not new.exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = run("--debug", "run", tmp_path, "--self-test")
    assert result.returncode != 0
    assert "Traceback" in result.stderr
