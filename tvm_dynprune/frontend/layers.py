# SPDX-License-Identifier: Apache-2.0
"""Bind a network's parameters and name its layers after them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm import relax

from tvm_dynprune.errors import ModelError
from tvm_dynprune.passes.dataflow import op_name, rebuild, result_of, substitute


def bind_parameters(mod: tvm.IRModule, parameters: Mapping[str, np.ndarray]) -> tvm.IRModule:
    """Make the parameters constants; a convolution's variable gets its weight's name.

    Parameters
    ----------
    mod
        A module whose ``main`` takes the parameters after the inputs.
    parameters
        Parameter name → array, named as in `main`.

    Raises
    ------
    ModelError
        A parameter holds NaN or infinity.
    """
    check_finite(parameters)
    mod = _name_layers(mod)
    tensors = {name: tvm.runtime.tensor(np.asarray(v, order="C")) for name, v in parameters.items()}
    return relax.transform.BindParams("main", tensors)(mod)


def check_finite(parameters: Mapping[str, np.ndarray]) -> None:
    """Raise ModelError if a parameter holds NaN or infinity."""
    for name, values in parameters.items():
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ModelError(
                f"weight {name} holds NaN or infinity: train or export the model again"
            )


def name_convolutions(mod: tvm.IRModule, weights: Sequence[str]) -> tvm.IRModule:
    """Name the convolutions, in order, after their weights.

    Where an importer made more or fewer convolutions than there were, the names would be wrong and
    are left out.
    """
    bindings = [binding for block in mod["main"].body.blocks for binding in block.bindings]
    found = [b.var for b in bindings if op_name(b.value) == "nn.conv2d"]
    if len(found) != len(weights):
        return mod
    return _rename(
        mod,
        {
            var: relax.DataflowVar(layer_name(weight), var.ty)
            for var, weight in zip(found, weights, strict=True)
            if isinstance(var, relax.DataflowVar)
        },
    )


def layer_name(weight: str) -> str:
    """A layer's name from its weight's: ``p_layer1_0_conv1_weight`` gives ``layer1_0_conv1``.

    The prefix is that of an exported program's parameters, whose names have no dots.
    """
    name = re.sub(r"[^0-9A-Za-z]+", "_", weight).strip("_")
    if "." not in weight:
        name = re.sub(r"^(p|b|c)_", "", name)
    return re.sub(r"_weight(_\d+)?$", "", name) or "layer"


def _name_layers(mod: tvm.IRModule) -> tvm.IRModule:
    main = mod["main"]
    parameters = set(main.params)
    renamed: dict[relax.Var, relax.Var] = {}
    weights: dict[relax.Var, str] = {}
    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            arguments = list(value.args) if isinstance(value, relax.Call) else []
            if op_name(value) == "permute_dims" and arguments[0] in parameters:
                weights[binding.var] = arguments[0].name
            if op_name(value) in ("nn.conv2d", "matmul") and len(arguments) == 2:
                weight = arguments[1]
                source = weights.get(weight, weight.name if weight in parameters else None)
                if source is not None and isinstance(binding.var, relax.DataflowVar):
                    new = relax.DataflowVar(layer_name(source), binding.var.ty)
                    renamed[binding.var] = new
    return _rename(mod, renamed)


def _rename(mod: tvm.IRModule, renamed: Mapping[relax.Var, relax.Var]) -> tvm.IRModule:
    main = mod["main"]
    values = {
        renamed.get(binding.var, binding.var): substitute(binding.value, renamed)
        for block in main.body.blocks
        for binding in block.bindings
    }
    result = substitute(result_of(main), renamed)
    mod = tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs)
    mod.update_func(mod.get_global_var("main"), rebuild(main, values, result))
    return mod
