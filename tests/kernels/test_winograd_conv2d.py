# SPDX-License-Identifier: Apache-2.0
"""Winograd convolution against PyTorch; closed channels hold NaN, so reading one would show."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.util import (
    OPENNESS,
    assert_close,
    assert_pooled,
    blocked,
    compiled,
    halo_of,
    open_channels,
    open_list,
    permutes,
    plain,
    random,
    unwritten,
    unwritten_pool,
)
from tests.pairwise import pairwise
from tvm_dynprune.kernels.activation import Activation
from tvm_dynprune.kernels.conv2d import Conv2d, pack_channels
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.winograd import Winograd, pack_winograd_weight
from tvm_dynprune.kernels.winograd_conv2d import winograd_conv2d
from tvm_dynprune.kernels.winograd_input import winograd_input

LANES = 8
# Of the scale: the transforms of F(4 x 4) subtract numbers ten times as large as their difference.
TOLERANCE = {2: 5e-6, 4: 5e-5}


def convolution(
    size: tuple[int, int] = (7, 6),
    pad: int = 1,
    halo: int = 1,
    batch: int = 1,
    channels: tuple[int, int] = (16, 24),
    **changes,
) -> Conv2d:
    r = changes.get("kernel", (3, 3))[0]
    height, width = (side + 2 * pad - r + 1 for side in size)
    y = FeatureMap(batch, channels[1], height, width, LANES, 1)
    spec = Conv2d(
        x=FeatureMap(batch, channels[0], *size, LANES, halo),
        y=y,
        kernel=(3, 3),
        stride=(1, 1),
        pad=(pad, pad),
        dilation=(1, 1),
        bias=True,
        unit_in=LANES,
        registers=20,
        permutes=permutes(LANES),
    )
    return replace(spec, **changes)


def check(spec: Conv2d, m: int, *kinds: str) -> None:
    """Compare with PyTorch for each kind of open sets, by default all open."""
    winograd = Winograd(spec, m)
    transform = None if winograd.fuses_input else compiled(winograd_input(winograd))
    kernel = compiled(winograd_conv2d(winograd))
    for kind in kinds or ("open",):
        _check(winograd, transform, kernel, kind)


def _check(winograd: Winograd, transform: Callable | None, kernel: Callable, kind: str) -> None:
    """Run the kernels and compare every open block; closed ones must stay as they were."""
    spec = winograd.conv
    x_map, y_map, tolerance = spec.x, spec.y, TOLERANCE[winograd.m]
    x = random(x_map.batch, x_map.channels, x_map.height, x_map.width)
    weight = random(y_map.channels, x_map.channels, *spec.kernel, seed=1)
    bias = random(y_map.channels, seed=2)
    scale = random(y_map.batch, y_map.channels, 1, 1, seed=3)
    residual = random(y_map.batch, y_map.channels, y_map.height, y_map.width, seed=4)
    open_in = open_channels(kind if spec.open_in else "open", len(x), x_map.channels, spec.unit_in)
    unit_out = 1 if spec.visit == "gather" else LANES
    open_out = open_channels(
        kind if spec.visit != "all" else "open", len(x), y_map.channels, unit_out, seed=5
    )
    clean = np.where(open_in[:, :, None, None], x, 0)
    x = np.where(open_in[:, :, None, None], x, np.nan).astype("float32")

    lists_in = list(open_list(open_in, LANES)) if spec.open_in else []
    source = blocked(x, x_map)
    if transform is not None:
        u = np.full(winograd.transformed_shape, np.nan, "float32")
        transform(source, *lists_in, u)
        source = u

    y = blocked(residual, y_map) if spec.in_place else unwritten(y_map)
    pool = unwritten_pool(y_map)
    arguments = [source, pack_winograd_weight(weight, winograd), pack_channels(bias, y_map)]
    arguments += [scale] if spec.scale else []
    if spec.residual is not None and not spec.in_place:
        arguments += [blocked(residual, spec.residual)]
    arguments += list(open_list(open_in, 1)) if winograd.by_channel else lists_in
    arguments += list(open_list(open_out, unit_out)) if spec.visit != "all" else []
    kernel(*arguments, y, *([pool] if spec.pools else []))

    expected = F.conv2d(
        torch.from_numpy(clean).double(),
        torch.from_numpy(weight).double(),
        torch.from_numpy(bias).double(),
        padding=spec.pad,
    ).numpy()
    expected = np.maximum(expected, 0) if spec.before else expected
    expected = expected * scale if spec.scale else expected
    expected = expected + residual if spec.residual is not None else expected
    closed = residual if spec.in_place else np.nan
    expected = np.where(open_out[:, :, None, None], expected, closed)
    assert_close(plain(y, y_map), expected.astype("float32"), tolerance)
    if spec.pools:
        assert_pooled(pool, expected.astype("float32"), tolerance)
    inside = open_out[:, ::LANES] if spec.visit != "gather" else slice(None)
    assert (halo_of(y, y_map)[inside] == 0).all()


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9), (7, 6), (16, 3), (13, 14)])
def test_sizes(m: int, size: tuple[int, int]) -> None:
    check(convolution(size), m)


@pytest.mark.parametrize(
    *pairwise(size=[(33, 40), (30, 71), (36, 31)], sides=["dense", "both"], registers=[16, 32])
)
def test_planes_of_several_strips(size: tuple[int, int], sides: str, registers: int) -> None:
    spec = convolution(size, open_in=sides == "both", registers=registers)
    check(replace(spec, visit="blocks" if sides == "both" else "all"), 4, "mixed")


@pytest.mark.parametrize(
    *pairwise(
        m=[2, 4],
        size=[(33, 40), (30, 71), (36, 31)],
        pad__halo=[(0, 0), (1, 1), (1, 2)],
        visit=["all", "blocks"],
        open_in=[False, True],
    )
)
def test_input_of_one_block_is_transformed_strip_by_strip(
    m, size, pad, halo, visit, open_in
) -> None:
    spec = convolution(size, pad, halo, batch=2, channels=(LANES, 24), visit=visit)
    spec = replace(spec, open_in=open_in, pools=True)
    assert Winograd(spec, m).fuses_input
    check(spec, m, "mixed")


@pytest.mark.parametrize(
    *pairwise(
        m=[2, 4],
        size=[(61, 66), (63, 71)],  # the last strip is lower, or not
        pad__halo=[(0, 0), (1, 2)],
        listed=[False, True],
        registers=[16, 32],
    )
)
def test_many_input_blocks_strip_by_strip(m, size, pad, halo, listed, registers) -> None:
    spec = convolution(size, pad, halo, batch=2, channels=(24, 40), registers=registers, pools=True)
    spec = replace(spec, open_in=listed, visit="blocks" if listed else "all")
    assert Winograd(spec, m).fuses_input
    check(spec, m, *(("closed", "mixed") if listed else ()))


@pytest.mark.parametrize(
    ("channels", "parts"),
    [((LANES, 24), 4), ((24, 40), 8)],  # twice two strips where 4, 4, 4 and 2 rows were; 7 are odd
)
def test_strips_are_shared_equally_by_two_threads(channels, parts) -> None:
    spec = convolution((56, 56), 1, 1, channels=channels, visit="blocks", pools=True)
    assert f"in T.parallel({parts})" in winograd_conv2d(Winograd(spec, 4)).script()
    check(spec, 4, "mixed")


@pytest.mark.parametrize(
    *pairwise(
        m=[2, 4],
        size=[(7, 6), (36, 31)],
        visit=["all", "blocks"],
        batch__registers=[(1, 16), (2, 32)],
    )
)
def test_pooling_on_the_way(m, size, visit, batch, registers) -> None:
    spec = convolution(size, batch=batch, visit=visit, pools=True, registers=registers)
    check(spec, m, "mixed")


@pytest.mark.parametrize(*pairwise(m=[2, 4], size=[(7, 6), (36, 31)], batch=[1, 2]))
def test_writing_over_the_residual(m, size, batch) -> None:
    spec = convolution(size, batch=batch, visit="blocks", in_place=True)
    check(replace(spec, residual=spec.y), m, "mixed")


@pytest.mark.parametrize("size", [(4, 4), (12, 11), (13, 29), (28, 31)])
@pytest.mark.parametrize("pad", [1, 2])
def test_four_by_four_kernels(size: tuple[int, int], pad: int) -> None:
    check(convolution(size, pad, 2, kernel=(4, 4)), 4)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize(("pad", "halo"), [(0, 0), (0, 1), (0, 3), (1, 1), (1, 2), (2, 2)])
def test_padding_and_a_halo_that_others_need(m: int, pad: int, halo: int) -> None:
    check(convolution((9, 6), pad, halo), m)


@pytest.mark.parametrize(
    *pairwise(m=[2, 4], batch=[1, 3], sides=["in", "out", "both"], registers=[16, 32])
)
def test_open_sets(m: int, batch: int, sides: str, registers: int) -> None:
    spec = convolution(batch=batch, channels=(24, 40), open_in=sides != "out", registers=registers)
    check(replace(spec, visit="all" if sides == "in" else "blocks"), m, *OPENNESS)


@pytest.mark.parametrize(
    *pairwise(m=[2, 4], open_in=[False, True], visit=["all", "blocks", "gather"])
)
def test_products_by_lane(m, open_in, visit) -> None:
    spec = convolution(open_in=open_in, visit=visit, by_lane=True, registers=32)
    assert "T.Shuffle" in winograd_conv2d(Winograd(spec, m)).script()
    check(spec, m, "mixed" if open_in or visit != "all" else "open")


@pytest.mark.parametrize(
    *pairwise(
        quick=[False, True],
        sums__strip_tiles__channels_at_once=[(1, 1, 1), (5, 8, 16), (12, 256, 64)],
        visit=["blocks", "gather"],
    )
)
def test_schedules(sums, strip_tiles, channels_at_once, quick, visit) -> None:
    schedule = Schedule(
        quick_weights=quick, sums=sums, strip_tiles=strip_tiles, channels_at_once=channels_at_once
    )
    unit_in = 1 if visit == "gather" else LANES
    spec = convolution(size=(19, 18), open_in=True, unit_in=unit_in, visit=visit, schedule=schedule)
    check(spec, 2, "mixed")


@pytest.mark.parametrize(*pairwise(m=[2, 4], unit_in=[2, LANES], visit=["all", "blocks"]))
def test_quick_weights_are_transformed_at_compile_time(m, unit_in, visit) -> None:
    spec = convolution(open_in=True, unit_in=unit_in, visit=visit)
    assert not Winograd(spec, m).packs_transformed
    spec = replace(spec, schedule=Schedule(quick_weights=True))
    assert Winograd(spec, m).packs_transformed
    check(spec, m, "mixed")


@pytest.mark.parametrize(
    *pairwise(
        m__size=[(2, (4, 4)), (2, (5, 7)), (4, (3, 3)), (4, (7, 6)), (4, (14, 13))],
        unit_in=[2, LANES],
        batch=[1, 2],
    )
)
def test_weights_that_are_transformed_in_registers(m, size, unit_in, batch) -> None:
    channels = (96, 24)  # more than are transformed at once
    spec = convolution(size, batch=batch, channels=channels, open_in=True, unit_in=unit_in)
    spec = replace(spec, visit="blocks", registers=32)
    winograd = Winograd(spec, m)
    assert winograd.transforms_in_registers
    check(spec, m, *OPENNESS)


@pytest.mark.parametrize(
    *pairwise(m=[2, 4], size=[(4, 4), (7, 6), (31, 35)], unit_in=[1, LANES], batch=[1, 2])
)
def test_output_channels_that_open_one_by_one(m, size, unit_in, batch) -> None:
    channels = (24, 43)
    spec = convolution(size, batch=batch, channels=channels, open_in=True, unit_in=unit_in)
    check(replace(spec, visit="gather"), m, *OPENNESS)


@pytest.mark.parametrize("m", [2, 4])
def test_epilogue_of_channels_that_open_one_by_one(m: int) -> None:
    residual = FeatureMap(1, 24, 7, 6, LANES, 2)
    spec = convolution(before=Activation(), scale=True, residual=residual, visit="gather")
    check(spec, m, "mixed")


@pytest.mark.parametrize(
    *pairwise(m=[2, 4], unit_in=[1, 2, 4], size=[(4, 4), (7, 6), (31, 35)], batch=[1, 2])
)
def test_input_channels_that_open_one_by_one(m, unit_in, size, batch) -> None:
    check(convolution(size, batch=batch, open_in=True, unit_in=unit_in), m, *OPENNESS)


@pytest.mark.parametrize("m", [2, 4])
def test_epilogue(m: int) -> None:
    residual = FeatureMap(1, 24, 7, 6, LANES, 2)
    check(convolution(before=Activation(), scale=True, residual=residual), m)


@pytest.mark.parametrize("m", [2, 4])
def test_output_channels_that_fill_no_block(m: int) -> None:
    spec = convolution((31, 35), channels=(16, 21))  # enough tiles to transform the weights for
    winograd = Winograd(spec, m)
    packed = pack_winograd_weight(random(21, 16, 3, 3), winograd)
    assert packed.shape == (3, (m + 2) ** 2, 2, LANES, LANES)
    assert (packed[2, ..., 5:] == 0).all()
    check(spec, m)
