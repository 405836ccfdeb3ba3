# SPDX-License-Identifier: Apache-2.0
"""Where a training runs: which device a name means, and that everything is on that one device."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.nn.distributed_worker import LATENCY
from tests.nn.util import config, write_data
from tvm_dynprune.errors import UserError
from tvm_dynprune.nn.device import CPU, find_device, mixed_precision
from tvm_dynprune.nn.evaluate import evaluate
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.train import _Trainer, train

META = torch.device("meta")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs, as far as PyTorch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return monkeypatch


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("cpu") == find_device("auto") == CPU
    with pytest.raises(UserError, match="--device cuda: PyTorch .* finds no GPU here; use cpu"):
        train(config(tmp_path), tmp_path / "out", device="cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "auto:", ""])
def test_no_name_of_a_device(name: str) -> None:
    with pytest.raises(UserError, match="cpu, cuda, cuda:N or auto"):
        find_device(name)


@pytest.mark.parametrize(
    ("name", "wanted"), [("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cpu", None)]
)
def test_with_two_gpus(gpus: pytest.MonkeyPatch, name: str, wanted: int | None) -> None:
    found = find_device(name)
    assert found == (CPU if wanted is None else torch.device("cuda", wanted))


def test_a_gpu_that_is_not_there(gpus: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--device cuda:2: there is no GPU 2, PyTorch finds 2"):
        find_device("cuda:2")


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_its_own_gpu(gpus: pytest.MonkeyPatch, name: str) -> None:
    gpus.setenv("LOCAL_WORLD_SIZE", "2")
    gpus.setenv("LOCAL_RANK", "1")
    assert find_device(name) == torch.device("cuda", 1)
    with pytest.raises(UserError, match="with 2 processes say cuda"):
        find_device("cuda:1")
    gpus.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes need as many GPUs, PyTorch finds 2"):
        find_device(name)


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, None),
        ({}, None),
    ],
)
def test_precision_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], wanted: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert mixed_precision(CPU) is wanted


@pytest.mark.parametrize(("bf16", "wanted"), [(True, torch.bfloat16), (False, torch.float16)])
def test_precision_on_a_gpu(gpus: pytest.MonkeyPatch, bf16: bool, wanted: torch.dtype) -> None:
    gpus.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: bf16)
    assert mixed_precision(torch.device("cuda", 0)) is wanted


@pytest.mark.parametrize("target", [{}, {"latency": LATENCY, "soc": "some"}, {"gain": 0.1}])
def test_everything_is_on_one_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: dict[str, Any]
) -> None:
    """PyTorch refuses to mix the meta device with the CPU as it refuses to mix in a GPU."""
    data = write_data(tmp_path / "mnist")
    train(config(data, gate=None, epochs=1), tmp_path / "dense")
    accurate = {} if "gain" in target else {"accurate_budget": 0.8}
    chosen = config(data, start=str(tmp_path / "dense"), distill=0.5, **accurate, **target)
    trainer = _Trainer(chosen, tmp_path / "out", resume=False, device=META)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    trainer.model.train()
    for loss in trainer._steps(0):
        assert loss.device.type == "meta"
    state = [*trainer.model.state_dict().values(), *trainer.average.values.values()]
    assert {value.device.type for value in state} == {"meta"}
    assert all(gate.switches is not None for gate in gates_of(trainer.model).values())
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        evaluate(trainer.model, trainer.validation, trainer.plan, chosen.latency)
