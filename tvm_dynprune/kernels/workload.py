# SPDX-License-Identifier: Apache-2.0
"""Workload: what a convolution computes, as a line of JSON, and the short name in logs."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

from tvm_dynprune.kernels.activation import Activation, Formula
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.schedule import Schedule

_PAIRS = ("kernel", "stride", "pad", "dilation")
_PARTS: dict[str, Any] = {
    "x": FeatureMap,
    "y": FeatureMap,
    "residual": FeatureMap,
}


def workload_of(spec: Conv2d) -> str:
    """One line that says everything about `spec` but its schedule.

    Nor does it tell what LowerKernels decides: whether the kernel pools on the way, or is in place.
    """
    fields = asdict(spec)
    for name in ("schedule", "pools", "in_place"):
        del fields[name]
    return json.dumps(fields, sort_keys=True)


def workload_key(spec: Conv2d) -> str:
    """A short name for `workload_of`: 16 hexadecimal digits of its SHA-256.

    Logs go by it, so what their kernels did not know is left out where it says nothing.
    """
    fields = json.loads(workload_of(spec))
    if spec.visit != "gather":
        del fields["permutes"]
    if spec.groups == 1:
        del fields["groups"]
    if spec.run is None:
        del fields["run"]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def spec_of(workload: str, schedule: Schedule) -> Conv2d:
    """The convolution that `workload_of` wrote, with a schedule.

    Raises
    ------
    TypeError, KeyError
        It is of another version.
    """
    fields = json.loads(workload)
    for name in _PAIRS:
        fields[name] = tuple(fields[name])
    for name, part in _PARTS.items():
        if fields[name] is not None:
            fields[name] = part(**fields[name])
    for name in ("before", "after"):
        if (field := fields[name]) is not None:
            fields[name] = Formula(**field) if "text" in field else Activation(**field)
    return Conv2d(**fields, schedule=schedule)
