# SPDX-License-Identifier: Apache-2.0
"""Read the normalisation of a network's input, so that what brings it into layout does it too."""

from typing import NamedTuple

import numpy as np
from tvm.relax import Var

from tvm_dynprune.kernels.blocking import Affine
from tvm_dynprune.passes.dataflow import Dataflow, channel_vector, op_name, shape_of


class Normalisation(NamedTuple):
    """A tensor and what is done to its channels."""

    source: Var
    affine: Affine


def normalisation_of(flow: Dataflow, var: Var) -> Normalisation | None:
    """Read ``var = (source + offset) * factor`` with a constant per channel; None if it is not."""
    channels = (shape_of(var) or (0, 0))[1]
    source, factor = _step(flow, var, channels, ("multiply",))
    source, offset = _step(flow, source, channels, ("add", "subtract"))
    if factor is None and offset is None:
        return None
    zeros, ones = np.zeros(channels, "float32"), np.ones(channels, "float32")
    affine = Affine(
        tuple(map(float, zeros if offset is None else offset)),
        tuple(map(float, ones if factor is None else factor)),
    )
    return Normalisation(source, affine)


def _step(
    flow: Dataflow, var: Var, channels: int, names: tuple[str, ...]
) -> tuple[Var, np.ndarray | None]:
    """The tensor before an operation with a constant per channel, and the constant (an addend)."""
    value = flow.definition.get(var)
    name = op_name(value) if value is not None else ""
    if value is None or name not in names or not isinstance(value.args[0], Var):
        return var, None
    vector = channel_vector(value.args[1], channels)
    if vector is None or shape_of(value.args[0]) != shape_of(var):
        return var, None
    return value.args[0], -vector if name == "subtract" else vector
