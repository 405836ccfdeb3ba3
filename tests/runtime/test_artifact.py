# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tvm_dynprune.errors import ArtifactError
from tvm_dynprune.runtime import Artifact, Session
from tvm_dynprune.runtime.artifact import MANIFEST, REFERENCE


@pytest.fixture
def copy(artifact: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact.path, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads((folder / MANIFEST).read_text())
    change(table)
    (folder / MANIFEST).write_text(json.dumps(table))


def test_a_copy_loads(copy: Path, artifact: Artifact) -> None:
    assert Artifact.load(copy).manifest == artifact.manifest


@pytest.mark.parametrize("which", ["library", "weights", "reference"])
def test_a_changed_byte_is_found(copy: Path, artifact: Artifact, which: str) -> None:
    path = copy / getattr(artifact.manifest, which, REFERENCE)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=f"{path.name}: its bytes have changed"):
        Artifact.load(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / REFERENCE).unlink()
    with pytest.raises(ArtifactError, match=f"{REFERENCE} is missing"):
        Artifact.load(copy)


def test_another_tvm_version_is_refused(copy: Path) -> None:
    edit(copy, lambda table: table["versions"].update({"apache-tvm": "0.26.0"}))
    with pytest.raises(ArtifactError, match=r"built with TVM 0\.26\.0, here is"):
        Artifact.load(copy)


def test_another_architecture_is_refused(copy: Path) -> None:
    edit(copy, lambda table: table["target"].update({"mtriple": "riscv64-linux-gnu"}))
    with pytest.raises(ArtifactError, match=r"lacks the architecture \(riscv64"):
        Session(Artifact.load(copy))


def test_missing_instructions_are_refused(copy: Path) -> None:
    edit(copy, lambda table: table.update({"features": ["unheard_of"]}))
    with pytest.raises(ArtifactError, match="this machine lacks unheard_of"):
        Session(Artifact.load(copy))


@pytest.mark.parametrize("text", ["", "{}", "[1, 2", '{"format": 99}'])
def test_a_damaged_manifest_is_one_line(copy: Path, text: str) -> None:
    (copy / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError) as raised:
        Artifact.load(copy)
    assert "\n" not in str(raised.value)


def test_no_artifact_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="`tvm-dynprune compile` makes one"):
        Artifact.load(tmp_path)
