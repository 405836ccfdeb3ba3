# SPDX-License-Identifier: Apache-2.0
"""Run a network to see what it does: what its gates decide, which shapes its tensors have."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from tvm_dynprune.nn.gates import gates_of


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a block, then each module back as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


@contextmanager
def recorded_masks(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that each forward pass in the block fills: gate name to mask (N, C)."""
    masks: dict[str, Tensor] = {}

    def record(name: str, _gate: nn.Module, _inputs: object, mask: Tensor) -> None:
        masks[name] = mask[:, :, 0, 0]

    handles = [
        gate.register_forward_hook(partial(record, name)) for name, gate in gates_of(model).items()
    ]
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()


class _ShapeRecorder(fx.Interpreter):
    """Run a graph and keep the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op != "output":
            self.shapes[n] = result.shape
        return result


def tensor_shapes(
    module: fx.GraphModule, input_shape: tuple[int, int, int]
) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor of a traced network, for one image of `input_shape`."""
    recorder = _ShapeRecorder(module)
    example = next((p for p in module.parameters()), torch.empty(0))
    with evaluating(module), torch.no_grad():
        recorder.run(torch.zeros(1, *input_shape, device=example.device, dtype=example.dtype))
    return recorder.shapes
