# SPDX-License-Identifier: Apache-2.0
"""torch.compile with the inductor, frozen weights, channels last."""

from pathlib import Path
from typing import Any

import numpy as np

from tvm_dynprune.errors import ToolError

PACKAGE = "torch"
SETTINGS = "torch.compile, mode max-autotune, frozen weights, channels_last"


class _Engine:
    def __init__(self, model: Path, threads: int) -> None:
        import torch
        from torch._inductor import config

        torch.set_num_threads(threads)
        config.freezing = True
        self._torch = torch
        network = torch.export.load(model).module()
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._net = torch.compile(network, mode="max-autotune")

    def set_input(self, x: np.ndarray) -> None:
        tensor = self._torch.from_numpy(np.array(x))
        self._x = tensor.contiguous(memory_format=self._torch.channels_last)

    def infer(self) -> None:
        with self._torch.inference_mode():
            self._output = self._net(self._x)

    def output(self) -> np.ndarray:
        return self._output.numpy()


def prepare(model: Path, folder: Path) -> Path:
    """PyTorch takes the ``.pt2`` beside the ONNX file.

    Raises
    ------
    ToolError
        There is none.
    """
    exported = model.with_suffix(".pt2")
    if not exported.is_file():
        raise ToolError(f"torch takes no ONNX file: export the network to {exported} too")
    return exported


def load(model: Path, threads: int, options: dict[str, Any]) -> _Engine:
    """Load a ``.pt2`` file; no options."""
    return _Engine(model, threads)
