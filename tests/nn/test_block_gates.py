# SPDX-License-Identifier: Apache-2.0
"""Gates of kind "block": where they stand, what they save, and that a closed block is not run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.kernels.util import quick_host
from tests.nn.small_networks import Chain, Inverted, Residual, decide, executed
from tests.nn.util import config, write_data
from tvm_dynprune.compiler import compile
from tvm_dynprune.errors import ModelError
from tvm_dynprune.frontend import from_exported
from tvm_dynprune.frontend.model import Model
from tvm_dynprune.nn.blocks import find_blocks
from tvm_dynprune.nn.chains import trace
from tvm_dynprune.nn.checkpoint import load_checkpoint
from tvm_dynprune.nn.export import export
from tvm_dynprune.nn.gates import Gate, gates_of
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.macs import count_macs
from tvm_dynprune.nn.networks import NETWORKS, NetworkSpec, build_network
from tvm_dynprune.nn.train import train
from tvm_dynprune.runtime.session import Session


class TwoBlocks(nn.Module):
    """A block with a convolution in its shortcut, one of an inverted residual, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        # 8 channels: PyTorch 2.13 corrupts its heap in 1x1 convolutions with steps of 2 and fewer
        # inputs, backwards, channels last, on processors without AVX-512.
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(8, 8, 1, stride=2)
        self.expand = nn.Conv2d(8, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()
        x = x + self.project(self.depthwise(self.expand(x).relu()).relu())
        return self.fc(x.mean((2, 3)))


def test_one_gate_per_block_at_its_last_convolution() -> None:
    report = insert_gates(TwoBlocks(), "block").report
    assert report.gated == ("conv2", "project")
    reasons = {row.layer: row.reason for row in report.layers}
    assert reasons["conv2"] == "closes conv1 too"
    assert reasons["expand"] == "the gate of project closes it"
    assert reasons["shortcut"] == reasons["stem"] == "in no residual block"
    excluded = insert_gates(TwoBlocks(), "block", exclude=["conv*"]).report
    assert excluded.gated == ("project",)
    assert next(r.reason for r in excluded.layers if r.layer == "conv2") == "excluded by pattern"


def test_blocks_of_resnet() -> None:
    gates = gates_of(insert_gates(build_network("resnet20"), "block", 16))
    assert len(gates) == 9
    assert {gate.groups for gate in gates.values()} == {1}


def test_a_residual_that_others_read_is_no_block() -> None:
    class Read(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).relu()
            h = self.conv1(x).relu()
            y = self.bn2(self.conv2(h)) + x
            return self.fc(self.conv3(y).relu().mean((2, 3))) + h.mean()

    model = Read()
    assert find_blocks(trace(model), dict(model.named_modules())) == []


@pytest.mark.parametrize("network", [Chain, Inverted])
def test_a_network_without_blocks_is_refused(network: type[nn.Module]) -> None:
    with pytest.raises(ModelError, match="has no residual block: choose another gate"):
        insert_gates(network(), "block")


def test_starts_open_and_a_closed_block_is_its_shortcut() -> None:
    plain = Residual().eval()
    model = insert_gates(plain, "block").eval()
    x = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(model(x), plain(x))
    decide(model, {"conv2": [0]})
    shortcut = plain.fc(plain.conv3(plain.stem(x).relu()).relu().mean((2, 3)))
    torch.testing.assert_close(model(x), shortcut)


def test_nothing_of_a_closed_block_is_executed() -> None:
    model = insert_gates(Residual(), "block").eval()
    closed = {"gates.conv2": 4 * 16 + 16, "conv1": 0, "conv2": 0}
    decide(model, {"conv2": [0]})
    counts = executed(model)
    assert {name: counts[name] for name in closed} == closed
    decide(model, {"conv2": [1]})
    assert executed(model)["conv1"] == executed(model)["conv2"] == 4 * 4 * 9 * 36


@pytest.fixture(scope="module")
def gated() -> nn.Module:
    """Its two blocks are open for some of `pixels()` and closed for others."""
    torch.manual_seed(0)
    model = insert_gates(TwoBlocks(), "block").eval()
    for gate in gates_of(model).values():
        gate.spread()
    with torch.no_grad():
        logits: dict[Gate, torch.Tensor] = {}

        def keep(gate: Gate, inputs: tuple[torch.Tensor]) -> None:
            logits[gate] = gate.logits(inputs[0]).flatten()

        hooks = [gate.register_forward_pre_hook(keep) for gate in gates_of(model).values()]
        model(torch.from_numpy(pixels()))
        for hook in hooks:
            hook.remove()
        for gate, values in logits.items():
            gate.threshold.fill_(float(values.sort().values[2:4].mean()))
    return model


def pixels() -> np.ndarray:
    return np.random.default_rng(0).random((6, 1, 12, 12), "float32")


def compiled(gated: nn.Module, folder: Path, lowering: str, batch: int) -> Session:
    program = export(gated, torch.rand(2, 1, 12, 12))

    def reference(x: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [gated(torch.from_numpy(x)).numpy()]

    imported = Model("blocks", from_exported(program, batch=batch), reference)
    return Session(compile(imported, quick_host(), folder / "a", lowering=lowering))


@pytest.mark.parametrize(
    ("lowering", "batch"), [("auto", 1), ("auto", 3), ("if", 3), ("indexed", 1), ("dense", 1)]
)
def test_compiled_as_masked_and_counted_alike(
    gated: nn.Module, tmp_path: Path, lowering: str, batch: int
) -> None:
    session, x = compiled(gated, tmp_path, lowering, batch), pixels()
    with torch.no_grad():
        wanted = gated(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(x), wanted, rtol=1e-4, atol=1e-5 * abs(wanted).max())
    assert all(0 < decided.mean() < 1 for decided in session.open_channels)
    counted = count_macs(gated, torch.from_numpy(x)).executed_total
    assert session.macs.tolist() == counted.tolist()
    chosen = {c["layer"]: c["lowering"] for c in session.manifest.choices}
    expected = "if" if (lowering, batch) == ("auto", 1) else lowering.replace("auto", "indexed")
    assert {chosen[name] for name in chosen if name.startswith(("conv", "expand"))} == {expected}


def test_kernels_of_a_closed_block_are_not_called(gated: nn.Module, tmp_path: Path) -> None:
    """Its convolutions run for exactly the images that open it, in the order of the manifest."""
    session = compiled(gated, tmp_path, "auto", 1)
    layer_of = dict(session.manifest.kernels["main"])
    seen = set()
    for x in pixels():
        session.run(x[None])
        called = [name for name, _ in session.kernel_ticks(x[None])]
        layers = [layer_of[name] for name in called if layer_of.get(name)]
        first, second = (bool(decided[0, 0]) for decided in session.open_channels)
        count = {layer: layers.count(layer) for layer in layers}
        assert ("conv1" in count) == first
        assert ("expand" in count) == ("depthwise" in count) == second
        seen.add((first, second))
    assert len(seen) > 1


def test_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(classes: int, mean: object, std: object) -> nn.Module:
        return TwoBlocks()

    spec = NetworkSpec(build, (1, 28, 28), 10, (0.3,), (0.3,))
    monkeypatch.setitem(NETWORKS, "two_blocks", spec)
    data = write_data(tmp_path / "mnist")
    train(config(data, network="two_blocks", gate="block", epochs=4), tmp_path / "out")
    model, info = load_checkpoint(tmp_path / "out")
    assert (info.gate, set(gates_of(model))) == ("block", {"gates.conv2", "gates.project"})
