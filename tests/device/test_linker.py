# SPDX-License-Identifier: Apache-2.0
import re
import subprocess
from pathlib import Path

import pytest
import tvm

from tvm_dynprune.compiler import compile
from tvm_dynprune.device.linker import link_library
from tvm_dynprune.errors import ToolError
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.kernels.open_list import open_list
from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.runtime import Artifact, Session
from tvm_dynprune.soc import load_soc

pytestmark = [pytest.mark.phone, pytest.mark.xdist_group("phone")]

NEEDED = {
    "android-generic": ["libc.so", "libm.so", "libtvm_ffi.so"],
    "raspberry-pi-5": ["libc.so.6", "libm.so.6", "libtvm_ffi.so"],
}


@pytest.fixture(scope="module", params=sorted(NEEDED))
def cross(request, onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("cross") / "artifact"
    return compile(load_model(onnx_file), load_soc(request.param), out)


def told(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def library(artifact: Artifact) -> Path:
    return artifact.library


def needed_by(path: Path) -> list[str]:
    return re.findall(r"NEEDED.*\[(.*)\]", told("readelf", "-dW", path))


def test_a_library_needs_only_what_its_system_has(cross: Artifact) -> None:
    needed = needed_by(library(cross))
    assert set(needed) <= set(NEEDED[cross.manifest.soc])
    wanted = re.findall(r" UND (\w+)", told("readelf", "--dyn-syms", "-W", library(cross)))
    assert any(name.startswith("TVMFFI") for name in wanted) == ("libtvm_ffi.so" in needed)
    assert "TEXTREL" not in told("readelf", "-dW", library(cross))


@pytest.mark.parametrize("name", NEEDED)
def test_kernels_that_check_their_arguments_need_what_reports_them(name, tmp_path: Path) -> None:
    soc, path = load_soc(name), tmp_path / "kernel.so"
    kernel = tvm.IRModule({"main": open_list(1, 16, 4).with_attr("global_symbol", "main")})
    compiled = tvm.compile(kernel, soc.tvm_target(), tir_pipeline=TIR_PIPELINE)
    compiled.export_library(str(path), fcompile=link_library(soc.target["mtriple"]))
    assert "libtvm_ffi.so" in needed_by(path)


def test_its_segments_fit_pages_of_16_kib(cross: Artifact) -> None:
    segments = told("readelf", "-lW", library(cross))
    assert set(re.findall(r"^ +LOAD.* (0x\w+)$", segments, re.MULTILINE)) == {"0x4000"}


def test_android_code_leaves_x18_alone(cross: Artifact) -> None:
    code = told("aarch64-linux-gnu-objdump", "-d", library(cross))
    assert "fmla" in code
    if "android" in cross.manifest.soc:
        assert not re.search(r"\b[wx]18\b", code)


def test_a_cross_compiled_artifact_says_that_it_was_not_tested(cross: Artifact) -> None:
    assert cross.manifest.max_abs_error is None
    assert "asimd" in cross.manifest.features
    with pytest.raises(Exception, match=r"lacks the architecture \(aarch64.*--device"):
        Session(cross)


def test_what_the_linker_refuses_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.o"
    broken.write_text("no object")
    with pytest.raises(ToolError, match="cannot link") as raised:
        link_library("aarch64-unknown-linux-gnu")(str(tmp_path / "out.so"), [str(broken)])
    assert "\n" not in str(raised.value)


def test_no_linker_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    with pytest.raises(ToolError, match="apt install binutils-aarch64-linux-gnu"):
        link_library("aarch64-unknown-linux-gnu")
