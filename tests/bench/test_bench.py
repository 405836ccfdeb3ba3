# SPDX-License-Identifier: Apache-2.0
"""Benchmarks against another engine, with one that every test environment has."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tvm_dynprune.bench import subject as subjects
from tvm_dynprune.bench.bench import measure_bench
from tvm_dynprune.bench.engines import PEERS, engine_module
from tvm_dynprune.bench.forced import Forced, Gating, compile_forced, force_gates
from tvm_dynprune.bench.subject import Originals, Subject, forced_subject, load_subject
from tvm_dynprune.bench.suite import page
from tvm_dynprune.bench.turns import EngineError
from tvm_dynprune.errors import ToolError
from tvm_dynprune.nn.export import write_onnx
from tvm_dynprune.report.suite_plot import plot_suite
from tvm_dynprune.runtime import Artifact


@pytest.fixture(scope="module")
def forced() -> Forced:
    return force_gates("fashion_cnn", Gating(group_size=16, open_fraction=0.5), inputs=2)


@pytest.fixture(scope="module")
def artifact(forced: Forced, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("forced") / "artifact"
    return compile_forced(forced, folder, soc="host", lowering="indexed")


def measured(forced: Forced, artifact: Artifact) -> dict:
    subject = forced_subject(forced, artifact)
    return measure_bench(subject, against=["onnxruntime"], rounds=2, seed=0)


def test_against_another_engine(forced: Forced, artifact: Artifact, tmp_path: Path) -> None:
    result = measured(forced, artifact)
    engines = result["engines"]
    assert list(engines) == ["dynprune", "dynprune_dense", "onnxruntime", "onnxruntime_masked"]
    for name in ("onnxruntime", "onnxruntime_masked"):
        assert engines[name]["max_abs_error"] < 1e-5
        assert engines[name]["runs"] == 12
    ratio = engines["onnxruntime"]["median_ms"] / engines["dynprune"]["median_ms"]
    assert result["speedup_vs_best_peer"] == pytest.approx(ratio)
    assert result["forced_gates"]
    assert 0.3 < result["open_fraction"] < 0.7
    assert result["provenance"]["versions"].keys() >= {"onnxruntime", "apache-tvm"}

    text = "\n".join(page([result]))
    assert "## fashion_cnn" in text
    assert "| onnxruntime_masked |" in text
    assert f"| {result['mac_cut']:.1%} |" in text
    plot_suite([result], ["onnxruntime"], tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text()
    assert "fashion_cnn" in picture
    assert "onnxruntime" in picture


def test_an_engine_that_computes_something_else_is_an_error(
    forced: Forced, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = subjects.write_for_peers

    def write_another(network: torch.nn.Module, name: str, path: Path) -> None:
        other = force_gates("fashion_cnn", Gating(seed=1))
        write(other.dense if path.stem == "dense" else network, name, path)

    monkeypatch.setattr(subjects, "write_for_peers", write_another)
    with pytest.raises(
        EngineError, match="engine onnxruntime differs from the network's own framework by"
    ):
        measured(forced, artifact)


@pytest.fixture(scope="module")
def files(forced: Forced, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dense.onnx and gated.onnx."""
    folder = tmp_path_factory.mktemp("files")
    for name, network in (("dense", forced.dense), ("gated", forced.gated)):
        write_onnx(
            torch.export.export(network, (torch.rand(1, 1, 28, 28),)), folder / f"{name}.onnx"
        )
    return folder


def loaded(what: Path, folder: Path) -> Subject:
    return load_subject(
        str(what), folder, gating=Gating(), inputs=2, soc="host", lowering="indexed"
    )


def test_a_file_is_what_others_run_with_its_gates(files: Path, tmp_path: Path) -> None:
    subject = loaded(files / "gated.onnx", tmp_path)
    result = measure_bench(subject, against=["onnxruntime"], rounds=1)
    engines, peer = result["engines"], "onnxruntime_masked"
    assert list(engines) == ["dynprune", "dynprune_dense", peer]
    assert engines[peer]["max_abs_error"] < 1e-5
    ratio = engines[peer]["median_ms"] / engines["dynprune"]["median_ms"]
    assert result["speedup_vs_best_peer"] == pytest.approx(ratio)
    assert not result["forced_gates"]


def test_others_run_no_artifact_and_torch_no_onnx_file(
    files: Path, artifact: Artifact, tmp_path: Path
) -> None:
    original = Originals(
        lambda _folder: {"dense": files / "dense.onnx"}, {"dense": lambda images: images}
    )
    subject = Subject(artifact, np.zeros((1, 1, 28, 28), "float32"), original)
    with pytest.raises(ToolError, match="export the network to .*dense.pt2 too"):
        measure_bench(subject, against=["torch"], rounds=1)
    alone = loaded(artifact.path, tmp_path)
    with pytest.raises(ToolError, match="--against takes an ONNX file or the name of a network"):
        measure_bench(alone, against=["onnxruntime"], rounds=1)


def test_forced_networks_share_their_weights(forced: Forced) -> None:
    gated, dense = forced.gated.state_dict(), forced.dense.state_dict()
    assert dense.keys() <= gated.keys()
    assert all(torch.equal(gated[name], value) for name, value in dense.items())


def test_engines_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError, match="unknown engine 'fast': known are onnxruntime, "):
        engine_module("fast")
    monkeypatch.setattr("tvm_dynprune.bench.engines.find_spec", lambda _: None)
    with pytest.raises(ToolError, match=r"openvino is not installed: pip install '.*\[bench\]'"):
        engine_module("openvino")


@pytest.mark.parametrize("name", PEERS)
def test_every_engine_has_the_same_face(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_dynprune.bench.engines.find_spec", lambda _: True)
    module = engine_module(name)
    assert module.SETTINGS
    assert callable(module.prepare)
    assert callable(module.load)
