# SPDX-License-Identifier: Apache-2.0
"""What each of two processes does in test_distributed: ``torchrun -m`` it with data and folder."""

import errno
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.nn.util import config
from tvm_dynprune.errors import DataError, UserError
from tvm_dynprune.nn import build_network, checkpoint, insert_gates
from tvm_dynprune.nn.device import CPU
from tvm_dynprune.nn.distributed import agreed, process_group, rank, replicate, world_size
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.latency import LatencyTable
from tvm_dynprune.nn.loss import budget_loss, floor_loss, stuck_loss
from tvm_dynprune.nn.macs import plan_macs
from tvm_dynprune.nn.train import _Trainer, train

LATENCY = LatencyTable(
    dense=8.0,
    fixed=0.5,
    layers={
        "features.3": {"sparse": [0.0, 1.0, 1.0, 4.5], "dense": [4.0, 4.0, 4.0, 4.0]},
        "features.7": {"sparse": [0.0, 2.0, 2.0, 4.0]},
    },
)


def gate_gradients(images: Tensor) -> dict[str, Tensor]:
    """Gradients of all gate losses, alone or averaged over the processes' shares of the images."""
    torch.manual_seed(0)
    model = insert_gates(build_network("fashion_cnn"), group_size=16).train()
    plan = plan_macs(model, (1, 28, 28))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # its statistics are those of a share, as documented
    for gate in gates_of(model).values():
        gate.spread()
    share = images.chunk(world_size())[rank()]
    replica = replicate(model, CPU)  # kept, since it averages only while it lives
    result = replica(share)
    loss = budget_loss(model, plan, 0.4) + budget_loss(model, plan, 0.4, LATENCY)
    loss = loss + floor_loss(model, 0.99) + stuck_loss(model, 0.1)
    (loss + 0 * result.sum()).backward()
    return {n: p.grad for n, p in model.named_parameters() if n.startswith("gates.")}  # pyright: ignore


def refused(action: Any) -> str:
    """The line of the error that an action ends with."""
    try:
        action()
    except UserError as error:
        return str(error)
    return "no error"


@contextmanager
def patched(place: Any, name: str, value: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, value)
        yield


def interrupt_at(step: int) -> Any:
    whole, taken = _Trainer._step, []

    def interrupted(self: _Trainer, *arguments: Any) -> Tensor:
        taken.append(1)
        if len(taken) == step:
            raise KeyboardInterrupt
        return whole(self, *arguments)

    return interrupted


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def one_process_fails() -> None:
    with agreed():
        if rank() == 1:
            raise DataError("only the second process knows")


def main(data: Path, folder: Path) -> None:
    """Write what this process saw to the folder, and the trainings that both share."""
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    wanted = gate_gradients(images)
    chosen = config(data, average=0.9, gate="squeeze")
    seen: dict[str, Any] = {}
    with process_group(CPU):
        got = gate_gradients(images)
        seen["gradients"] = {
            name: [float((got[name] - value).abs().max()), float(value.abs().max())]
            for name, value in wanted.items()
        }
        trainer = _Trainer(chosen, folder / "whole", resume=False)
        trainer.run()
        trainer.replica = trainer.model  # as train() does
        weights = {**trainer.model.state_dict(), "average": list(trainer.average.values.values())}
        torch.save(weights, folder / f"rank{rank()}.pt")
        with patched(_Trainer, "_step", interrupt_at(6 + 3)):
            seen["interrupted"] = refused(lambda: train(chosen, folder / "parts", device="cpu"))
        train(chosen, folder / "parts", device="cpu", resume=True)
        diverging = config(data, learning_rate=1e30)
        seen["nan"] = refused(lambda: train(diverging, folder / "nan", device="cpu"))
        with patched(checkpoint, "save_file", full_disk):
            seen["full"] = refused(lambda: train(chosen, folder / "full", device="cpu"))
        odd = config(data, batch_size=7)
        seen["odd"] = refused(lambda: train(odd, folder / "odd", device="cpu"))
        seen["one"] = refused(one_process_fails)
        seen["exists"] = refused(lambda: train(chosen, folder / "whole", device="cpu"))
        path = folder / f"rank{rank()}.json"
    tasks = Path("/proc/self/task").iterdir()
    seen["threads"] = [(task / "comm").read_text().strip() for task in tasks]
    path.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
