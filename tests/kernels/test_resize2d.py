# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tvm.relax import op

from tests.kernels.util import (
    OPENNESS,
    assert_close,
    blocked,
    compiled,
    halo_of,
    open_channels,
    open_list,
    plain,
    random,
    unwritten,
)
from tests.passes.util import Graph, run
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.resize2d import COORDINATES, Resize2d, resize2d

LANES, CHANNELS = 8, 21


def resized(spec: Resize2d, x: np.ndarray, *lists: np.ndarray) -> np.ndarray:
    y = unwritten(spec.y)
    compiled(resize2d(spec))(blocked(x, spec.x), *spec.tables, *lists, y)
    return y


def spec_of(size, result, *choice, batch=1, **fields) -> Resize2d:
    x = FeatureMap(batch, CHANNELS, *size, LANES, 1)
    return Resize2d(x, FeatureMap(batch, CHANNELS, *result, LANES, 2), *choice, **fields)


@pytest.mark.parametrize(
    ("size", "result"), [((5, 4), (10, 8)), ((7, 9), (3, 13)), ((3, 1), (1, 5))]
)
@pytest.mark.parametrize("align", [False, True])
def test_linear_as_pytorch_does(size, result, align):
    x = random(2, CHANNELS, *size)
    coordinates = "align_corners" if align else "half_pixel"
    spec = spec_of(size, result, "linear", coordinates, "", batch=2)
    wanted = F.interpolate(torch.from_numpy(x), result, mode="bilinear", align_corners=align)
    y = resized(spec, x)
    assert_close(plain(y, spec.y), wanted.numpy())
    assert (halo_of(y, spec.y) == 0).all()


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(
    ("method", "rounding"),
    [("linear", "")]
    + [("nearest_neighbor", r) for r in ("", "round_prefer_floor", "round_prefer_ceil", "ceil")],
)
def test_as_tvm_does(coordinates, method, rounding):
    size, result = (5, 8), (7, 4)
    x = random(1, CHANNELS, *size)

    def body(g, x):
        names = {"coordinate_transformation_mode": coordinates, "rounding_method": rounding}
        return g.emit(op.image.resize2d(x, result, method=method, **names))

    (wanted,) = run(Graph.build(body, x.shape), x)
    spec = spec_of(size, result, method, coordinates, rounding)
    assert_close(plain(resized(spec, x), spec.y), wanted)


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("kind", OPENNESS)
def test_lists(kind, fill):
    x = random(2, CHANNELS, 3, 4)
    choice = "nearest_neighbor", "asymmetric", "floor"
    spec = spec_of((3, 4), (6, 8), *choice, batch=2, listed=True, fill=fill)
    is_open = open_channels(kind, 2, CHANNELS, LANES)
    wanted = F.interpolate(torch.from_numpy(x), scale_factor=2).numpy()
    wanted = np.where(is_open[:, :, None, None], wanted, 0 if fill else np.nan)
    y = resized(spec, x, *open_list(is_open, LANES))
    assert_close(plain(y, spec.y), wanted.astype("float32"))
