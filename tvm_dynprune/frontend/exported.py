# SPDX-License-Identifier: Apache-2.0
"""torch.export → Relax."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import tvm
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from tvm_dynprune.errors import ModelError
from tvm_dynprune.frontend.layers import bind_parameters
from tvm_dynprune.frontend.names import CLASSES_FILE


def from_exported(
    program: torch.export.ExportedProgram, *, batch: int | None = None
) -> tvm.IRModule:
    """Import an exported program into a Relax module whose parameters are constants.

    Parameters
    ----------
    program
        What `torch.export.export` returned, with one image tensor (N, C, H, W) as input.
    batch
        Size of the first dimension where the program leaves it open (1 if None).

    Raises
    ------
    ModelError
        An operator that TVM does not know, another batch size than asked for, or NaN weights.
    """
    try:
        mod = from_exported_program(
            _assignments_as_where(program), keep_params_as_input=True, unwrap_unit_return_tuple=True
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"TVM cannot import the exported program: {lines[-1][:200]}") from error
    mod, tensors = relax.frontend.detach_params(mod)
    names = [var.name for var in mod["main"].params]
    names = names[len(names) - len(tensors["main"]) :]
    parameters = {name: value.numpy() for name, value in zip(names, tensors["main"], strict=True)}
    return bind_batch(bind_parameters(mod, parameters), batch)


def load_exported(
    path: Path, *, batch: int | None = None
) -> tuple[tvm.IRModule, Callable[[np.ndarray], list[np.ndarray]], tuple[str, ...]]:
    """Read a ``.pt2`` file: Relax module, reference (PyTorch), class names if stored."""
    if not zipfile.is_zipfile(path):  # torch would log a page about it
        raise ModelError(f"{path}: not a torch.export file (.pt2)")
    extra = {CLASSES_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:
        raise ModelError(f"{path}: not a torch.export file (.pt2)") from error
    module = program.module()

    def reference(x: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            outputs = module(torch.from_numpy(x))
        outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
        return [output.numpy() for output in outputs]

    classes = tuple(json.loads(extra[CLASSES_FILE] or "[]"))
    return from_exported(program, batch=batch), reference, classes


def bind_batch(mod: tvm.IRModule, batch: int | None) -> tvm.IRModule:
    """Give an open batch dimension its size.

    Raises
    ------
    ModelError
        The batch is fixed at another size.
    """
    size = mod["main"].params[0].ty.shape[0]
    if isinstance(size, tvm.tirx.Var):
        return relax.transform.BindSymbolicVars({size.name: batch or 1}, "main")(mod)
    if batch is not None and int(size) != batch:
        raise ModelError(f"the batch is fixed at {int(size)}, {batch} was asked for; export again")
    return mod


def _assignments_as_where(
    program: torch.export.ExportedProgram,
) -> torch.export.ExportedProgram:
    """Write ``mask[condition] = value`` as ``where(condition, value, mask)``.

    TVM imports an assignment through integer indices only. The value is one number, the same for
    all elements, in the gates that are written this way (ManiDP).
    """
    graph = program.graph_module.graph
    targets = (torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in targets or len(node.args) > 3:
            continue
        data, indices, value = node.args
        condition = indices[0]
        is_mask = len(indices) == 1 and condition.meta["val"].dtype == torch.bool
        same_shape = is_mask and condition.meta["val"].shape == data.meta["val"].shape
        if not same_shape or value.meta["val"].numel() != 1:
            continue
        with graph.inserting_before(node):
            new = graph.call_function(torch.ops.aten.where.self, (condition, value, data))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    graph.lint()
    return program
