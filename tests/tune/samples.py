# SPDX-License-Identifier: Apache-2.0
"""Small kernels to tune, on this machine."""

import numpy as np

from tvm_dynprune.kernels.activation import Activation
from tvm_dynprune.kernels.conv2d import Conv2d
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.soc import Soc, load_soc
from tvm_dynprune.tune.log import RunInfo
from tvm_dynprune.tune.task import TuningTask, representatives

HOST: Soc = load_soc("host")


def convolution(
    channels: tuple[int, int] = (32, 48),
    size: int = 14,
    kernel: int = 3,
    stride: int = 1,
    visit: str = "blocks",
    schedule: Schedule | None = None,
    soc: Soc = HOST,
) -> Conv2d:
    """A convolution of a square plane with bias and ReLU, gated on both sides unless "all"."""
    lanes, pad = soc.lanes, kernel // 2
    x = FeatureMap(1, channels[0], size, size, lanes, pad)
    side = (size + 2 * pad - kernel) // stride + 1
    return Conv2d(
        x=x,
        y=FeatureMap(1, channels[1], side, side, lanes, 1),
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(pad, pad),
        dilation=(1, 1),
        bias=True,
        after=Activation(),
        open_in=visit != "all",
        unit_in=1 if visit == "gather" else lanes,
        visit=visit,
        registers=soc.vector_registers,
        by_lane=soc.multiplies_by_lane,
        permutes=soc.permutes,
        schedule=schedule or Schedule(),
    )


def masks(spec: Conv2d, images: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Open input and output channels (N, C) bool, in groups of the lanes, or one by one."""
    rng, lanes = np.random.default_rng(seed), spec.y.lanes
    unit = 1 if spec.visit == "gather" else lanes
    sides = []
    for size in (spec.x.channels, spec.y.channels):
        groups = rng.random((images, -(-size // unit))) < 0.5
        groups[:, 0] = True
        sides.append(np.repeat(groups, unit, axis=1)[:, :size])
    return sides[0], sides[1]


def task_for(spec: Conv2d, *layers: str) -> TuningTask:
    """A task with random open lists."""
    return TuningTask(spec, layers or ("conv",), representatives(spec, [masks(spec)]), True)


def info(**changes) -> RunInfo:
    """Of a log for this machine."""
    return RunInfo(**{"network": "net", "soc": "host", "target": dict(HOST.target)} | changes)
