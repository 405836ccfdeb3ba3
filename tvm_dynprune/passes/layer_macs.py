# SPDX-License-Identifier: Apache-2.0
"""What each layer of a compiled network costs, in terms of its gates: data for the manifest.

A layer of (C_in, C_out) channels executes ``open_in * open_out * macs_per_pair``
multiply-accumulates for one input; of several groups C_in is that of one, and all of them are open.
The open sets are JSON terms: ``null`` for all channels, ``{"gate": i}``,
``{"gate": i, "channels": C}`` for a gate's one decision over another number of channels,
``{"any": [...]}``, ``{"all": [...]}`` and ``{"concat": [[term, channels], ...]}``; `runtime.macs`
evaluates them.
"""

import json
from math import prod

from tvm import relax
from tvm.relax import Var

from tvm_dynprune.passes.annotate_open import OpenSets
from tvm_dynprune.passes.channel_sets import ChannelSet, Concatenation, Mask, Union, without
from tvm_dynprune.passes.composite import CONVOLUTIONS, as_composite
from tvm_dynprune.passes.dataflow import Functions, constant_of, op_name, result_of, shape_of


def layer_macs(func: relax.Function, functions: Functions) -> list[dict]:
    """One entry per convolution of a function with composite calls, in order."""
    sets = OpenSets(func, functions)
    gates, (batch, *_) = _gate_index(func, sets), shape_of(func.params[0])
    layers = []
    for binding in sets.flow.bindings:
        composite = as_composite(functions, binding.value)
        if composite is None or composite.kind not in CONVOLUTIONS:
            if composite is not None and composite.kind == "transposed_conv2d":
                layers.append(_transposed_layer(composite.layer, composite.operator, batch))
            elif op_name(binding.value) == "nn.conv2d_transpose":
                layers.append(_transposed_layer(binding.var.name, binding.value, batch))
            elif op_name(binding.value) == "nn.conv2d":
                layers.append(_plain_layer(binding.var, binding.value, batch))
            elif op_name(binding.value) == "matmul":
                layers.extend(_linear_layer(binding.var, binding.value, batch))
            continue
        x, weight = composite.arguments["x"], shape_of(composite.arguments["weight"])
        is_depthwise = composite.kind == "depthwise_conv2d"
        source = without(sets.nonzero.get(x), sets.flow.descendants(binding.var))
        layers.append(
            {
                "layer": composite.layer,
                "channels_in": 1 if is_depthwise else weight[1],
                "channels_out": weight[0],
                "macs_per_pair": _pixels(binding.var, batch) * weight[2] * weight[3],
                "open_in": _term(source, gates) if composite.kind == "conv2d" else None,
                "open_out": _term(sets.computed[binding.var], gates),
            }
        )
    return layers


def _transposed_layer(layer: str, call: relax.Call, batch: int) -> dict:
    """A transposed convolution: every pixel of its input takes part with the whole kernel."""
    x, weight = shape_of(call.args[0]), shape_of(call.args[1])
    pixels = x[0] // batch * prod(x[2:])
    return _open_layer(layer, weight[0], weight[1], pixels * prod(weight[2:]))


def _plain_layer(var: Var, call: relax.Call, batch: int) -> dict:
    weight = shape_of(call.args[1])
    return _open_layer(var.name, weight[1], weight[0], _pixels(var, batch) * prod(weight[2:]))


def _linear_layer(var: Var, call: relax.Call, batch: int) -> list[dict]:
    """A linear layer over more than the channels of a plane."""
    weight, rows = shape_of(call.args[1]), prod(shape_of(var)[:-1])
    if constant_of(call.args[1]) is None or len(weight) < 2:
        return []
    return [_open_layer(var.name, weight[-2], weight[-1], rows // batch)]


def _open_layer(layer: str, channels_in: int, channels_out: int, macs_per_pair: int) -> dict:
    """A layer that skips nothing."""
    sizes = {"channels_in": channels_in, "channels_out": channels_out}
    sets = {"open_in": None, "open_out": None}
    return {"layer": layer, **sizes, "macs_per_pair": macs_per_pair, **sets}


def _pixels(var: Var, batch: int) -> int:
    """Pixels of one input; a linear layer may have its pixels in the first dimension."""
    shape = shape_of(var)
    return shape[0] // batch * shape[2] * shape[3]


def _gate_index(func: relax.Function, sets: OpenSets) -> dict[Var, int]:
    """Multiplier → position of its gate among the function's outputs."""
    result = result_of(func)
    fields = list(result.fields) if isinstance(result, relax.Tuple) else [result]
    index: dict[Var, int] = {}
    for position, field in enumerate(fields[int(func.attrs["num_outputs"]) :]):
        nonzero = sets.flow.value(sets.flow.value(field).args[0])
        index.setdefault(nonzero.args[0], position)
    return index


def _term(item: ChannelSet | None, gates: dict[Var, int]) -> dict | None:
    if item is None:
        return None
    if isinstance(item, Mask):
        if item.var not in gates:
            return None
        own = item.channels == shape_of(item.var)[1]
        return {"gate": gates[item.var]} | ({} if own else {"channels": item.channels})
    if isinstance(item, Concatenation):
        return {"concat": [[_term(part, gates), size] for part, size in item.parts]}
    parts = sorted((_term(part, gates) for part in item.parts), key=json.dumps)
    if isinstance(item, Union):
        return None if None in parts else {"any": parts}
    return {"all": [part for part in parts if part is not None]} if any(parts) else None
