# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_code_and_data_and_nothing_else(tmp_path: Path) -> None:
    # Without isolation: hatchling is among the pinned packages, and no network is needed.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path]
    subprocess.run([*command, ROOT], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "tvm_dynprune/cli.py",
        "tvm_dynprune/passes/pipeline.py",
        "tvm_dynprune/report/records.toml",
        "tvm_dynprune/report/style.css",
        "tvm_dynprune/schedules/x86-avx512.toml",
        "tvm_dynprune/tuning_logs/README.md",
        "tvm_dynprune/demo/fashion_cnn_lkam.onnx",
        "tvm_dynprune/demo/fashion-mnist-sample/LICENSE",
    ):
        assert wanted in names
    assert all(name.startswith("tvm_dynprune") for name in names)
