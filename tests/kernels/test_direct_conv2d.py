# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm

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
from tvm_dynprune.kernels.activation import Activation, Formula
from tvm_dynprune.kernels.channel_groups import grouped_weight, groups_or_run, merged_groups
from tvm_dynprune.kernels.conv2d import Conv2d, pack_channels, pack_factors
from tvm_dynprune.kernels.conv2d_closed import conv2d_closed
from tvm_dynprune.kernels.direct_conv2d import direct_conv2d, pack_direct_weight
from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.pooling import means_of
from tvm_dynprune.kernels.schedule import Schedule
from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.soc import load_soc

SILU = Formula('["multiply", "x", ["sigmoid", "x"]]')
PRELU = Formula('["nn.leakyrelu", "x", ["factor", 0]]')
AFFINE = Formula('["add", ["multiply", "x", ["factor", 1]], ["factor", 2]]')
RELU, RELU6 = Activation(0.0, None), Activation(0.0, 6.0)


@dataclass(frozen=True)
class Case:
    """One convolution; the defaults are a plain 3x3 one that visits every block."""

    c_in: int = 8
    c_out: int = 16
    size: tuple[int, int] = (6, 7)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (1, 1, 1, 1)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    batch: int = 1
    lanes: int = 8
    bias: bool = True
    before: Activation | Formula | None = None
    scale: bool = False
    residual: bool = False
    after: Activation | Formula | None = None
    open_in: bool = False
    unit_in: int = 1
    visit: str = "all"
    unit: int = 1
    group_blocks: int = 1
    fill: bool = False
    pools: bool = False
    in_place: bool = False
    quick_weights: bool = False
    tile: tuple[int, int] | None = None
    registers: int = 20
    by_lane: bool = False
    permutes: bool = True
    y_halo: int = 1
    groups: int = 1

    @property
    def group(self) -> int:
        """Neighbouring channels that open together."""
        return {"gather": self.unit, "group": self.lanes * self.group_blocks}.get(
            self.visit, self.lanes
        )

    @property
    def spec(self) -> Conv2d:
        (h, w), (kh, kw) = self.size, self.kernel
        top, left, bottom, right = self.pad
        height = (h + top + bottom - self.dilation[0] * (kh - 1) - 1) // self.stride[0] + 1
        width = (w + left + right - self.dilation[1] * (kw - 1) - 1) // self.stride[1] + 1
        y = FeatureMap(self.batch, self.c_out, height, width, self.lanes, self.y_halo)
        groups, run = groups_or_run(self.groups, self.c_in, self.c_out, self.lanes)
        return Conv2d(
            x=FeatureMap(self.batch, self.c_in, h, w, self.lanes, max(self.pad)),
            y=y,
            kernel=self.kernel,
            stride=self.stride,
            pad=(top, left),
            dilation=self.dilation,
            bias=self.bias,
            before=self.before,
            scale=self.scale,
            residual=replace(y, halo=self.y_halo if self.in_place else 2)
            if self.residual
            else None,
            after=self.after,
            open_in=self.open_in,
            unit_in=self.unit_in,
            visit=self.visit,
            group_blocks=self.group_blocks,
            fill=self.fill,
            pools=self.pools,
            in_place=self.in_place,
            schedule=Schedule(quick_weights=self.quick_weights, tile=self.tile),
            registers=self.registers,
            by_lane=self.by_lane,
            permutes=permutes(self.lanes) if self.permutes else "",
            groups=groups,
            run=run,
        )


class Convolution:
    """A case's kernel, its random tensors and what PyTorch makes of them."""

    def __init__(self, case: Case) -> None:
        self.case, self.spec = case, case.spec
        self.kernel = compiled(direct_conv2d(self.spec))
        shape = (case.batch, case.c_out, self.spec.y.height, self.spec.y.width)
        self.x = random(case.batch, case.c_in, *case.size)
        self.weight = random(case.c_out, case.c_in // case.groups, *case.kernel, seed=1)
        self.bias = random(case.c_out, seed=2)
        self.scale = random(case.batch, case.c_out, 1, 1, seed=3)
        self.factors = random(3, case.c_out, seed=6)
        self.residual = random(*shape, seed=4)
        if case.in_place:
            self.residual = self.activated(self.residual, case.after)

    def run(self, open_in: np.ndarray, open_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The whole blocked result and the (N, C, H, W) inside it."""
        spec, case = self.spec, self.case
        x = self.x.copy()
        if case.open_in:
            x[~open_in] = np.nan  # a closed channel may hold anything
        weight = grouped_weight(self.weight, case.groups, spec.groups, spec.run)
        arguments = [blocked(x, spec.x), pack_direct_weight(weight, spec)]
        arguments += [pack_channels(self.bias, spec.y)] if case.bias else []
        arguments += [pack_factors(self.factors[: spec.factors], spec.y)] if spec.factors else []
        arguments += [self.scale] if case.scale else []
        if case.in_place:
            means = plain(blocked(self.residual, spec.residual), spec.y).mean((2, 3), keepdims=True)
            arguments += [blocked(means, means_of(spec.y))] if spec.pools else []
        elif spec.residual:
            arguments += [blocked(self.residual, spec.residual)]
        if case.open_in:
            arguments += open_list(open_in, case.lanes if spec.by_input_block else 1)
        if case.visit in ("blocks", "gather"):
            arguments += open_list(open_out, case.lanes if case.visit == "blocks" else 1)
        y = blocked(self.residual, spec.residual) if case.in_place else unwritten(spec.y)
        self.pool = unwritten_pool(spec.y)
        if case.visit == "group":
            for group in np.flatnonzero(open_out[0, :: case.group]):
                self.kernel(*arguments, y, int(group))
        else:
            self.kernel(*arguments, y, *([self.pool] if spec.pools else []))
        return y, plain(y, spec.y)

    def expected(self, open_in: np.ndarray, open_out: np.ndarray) -> np.ndarray:
        case = self.case
        x = self.x * open_in[:, :, None, None] if case.open_in else self.x
        top, left, bottom, right = case.pad
        padded = F.pad(torch.from_numpy(x).double(), (left, right, top, bottom))
        weight, bias = (torch.from_numpy(a).double() for a in (self.weight, self.bias))
        y = F.conv2d(
            padded, weight, bias if case.bias else None, case.stride, 0, case.dilation, case.groups
        ).numpy()
        y = self.activated(y, case.before)
        y = y * self.scale if case.scale else y
        y = y + self.residual if case.residual else y
        y = self.activated(y, case.after)
        if case.visit != "all":
            closed = np.full_like(y, np.nan)
            if case.fill or case.in_place:
                closed = self.activated(self.residual, case.after) if case.residual else 0 * y
            y = np.where(open_out[:, :, None, None], y, closed)
        return y.astype("float32")

    def activated(self, y: np.ndarray, activation: Activation | Formula | None) -> np.ndarray:
        slope, factor, offset = self.factors[:, :, None, None]
        if activation is SILU:
            return y / (1 + np.exp(-y))
        if activation is PRELU:
            return np.where(y > 0, y, slope * y)
        if activation is AFFINE:
            return y * factor + offset
        return y if activation is None else np.clip(y, activation.low, activation.high)


def check(case: Case) -> None:
    """Compare with PyTorch for all open, all closed and mixed lists, on either side."""
    convolution = Convolution(case)
    outs = OPENNESS if case.visit != "all" else ("open",)
    ins = OPENNESS if case.open_in else ("open",)
    for kind_in in ins:
        for kind_out in outs:
            open_in = open_channels(kind_in, case.batch, case.c_in, case.unit_in, seed=5)
            open_out = open_channels(kind_out, case.batch, case.c_out, case.group)
            y, actual = convolution.run(open_in, open_out)
            expected = convolution.expected(open_in, open_out)
            assert_close(actual, expected)
            if case.pools:
                assert_pooled(convolution.pool, expected)
            _check_halo(case, y, actual)


def _check_halo(case: Case, y: np.ndarray, actual: np.ndarray) -> None:
    """The halo of every written block is zero."""
    blocks = case.spec.y.blocks
    padded = np.full((case.batch, blocks * case.lanes), True)
    padded[:, : case.c_out] = np.isnan(actual).any((2, 3))
    written = ~padded.reshape(case.batch, blocks, case.lanes).all(2)
    halo = halo_of(y, case.spec.y)
    assert (halo[written] == 0).all()


@pytest.mark.parametrize(
    ("kernel", "pad"),
    [
        ((1, 1), (0, 0, 0, 0)),
        ((3, 3), (1, 1, 1, 1)),
        ((5, 5), (2, 2, 2, 2)),
        ((7, 7), (3, 3, 3, 3)),
        ((1, 3), (0, 1, 0, 1)),
        ((5, 2), (2, 0, 2, 1)),
        ((3, 3), (0, 1, 2, 0)),
        ((2, 2), (0, 0, 1, 1)),
    ],
)
def test_kernel_sizes_and_paddings(kernel, pad):
    check(Case(kernel=kernel, pad=pad, open_in=True))


@pytest.mark.parametrize(
    *pairwise(
        visit=["all", "blocks"],
        residual__fill=[(False, False), (False, True), (True, True)],
        size=[(9, 14), (2, 2)],  # of several parts, and of several vectors
        batch__registers=[(1, 16), (2, 32)],
    )
)
def test_pooling_on_the_way(visit, residual, fill, size, batch, registers):
    case = Case(c_out=40, size=size, batch=batch, visit=visit, residual=residual, fill=fill)
    check(replace(case, scale=True, after=RELU, pools=True, registers=registers))


@pytest.mark.parametrize(
    *pairwise(pools=[False, True], size=[(9, 14), (2, 2)], after=[None, RELU], batch=[1, 2])
)
def test_writing_over_the_residual(pools, size, after, batch):
    case = Case(c_out=40, size=size, batch=batch, visit="blocks", residual=True, after=after)
    check(replace(case, open_in=True, unit_in=8, pools=pools, in_place=True))


@pytest.mark.parametrize(
    *pairwise(visit=["all", "blocks"], residual__fill=[(False, True), (True, True)], batch=[1, 2])
)
def test_a_large_input_of_a_1x1_kernel_part_by_part(visit, residual, fill, batch):
    case = Case(c_in=64, c_out=40, size=(33, 32), kernel=(1, 1), pad=(0, 0, 0, 0), batch=batch)
    assert np.prod(case.spec.x.shape[1:]) * 4 > 256 * 1024  # bytes of a second level
    check(replace(case, visit=visit, residual=residual, fill=fill, open_in=True, pools=True))


@pytest.mark.parametrize("stride", [(2, 2), (1, 2), (3, 1)])
def test_strides(stride):
    check(Case(stride=stride, size=(9, 8)))


@pytest.mark.parametrize("dilation", [(2, 2), (1, 3)])
def test_dilations(dilation):
    check(Case(dilation=dilation, pad=(2, 3, 2, 3), size=(7, 9), stride=(2, 1)))


@pytest.mark.parametrize(("c_in", "c_out"), [(3, 21), (1, 8), (30, 37), (21, 3)])
@pytest.mark.parametrize("visit", ["all", "gather"])
def test_channel_counts_that_are_no_multiple_of_the_lanes(c_in, c_out, visit):
    check(Case(c_in=c_in, c_out=c_out, visit=visit, open_in=True, fill=visit == "gather"))


@pytest.mark.parametrize(
    *pairwise(
        size=[(1, 1), (2, 2), (2, 4), (3, 3), (1, 17), (17, 30)],
        visit=["all", "blocks"],
        c_out=[16, 40],
        registers=[16, 32],
    )
)
def test_pairs_of_blocks_and_single_ones(size, visit, c_out, registers):
    case = Case(c_out=c_out, size=size, visit=visit, open_in=True, registers=registers)
    assert case.spec.pairs == (c_out > case.spec.y.lanes)
    check(case)


@pytest.mark.parametrize(
    ("lanes", "registers", "visit"),
    [(4, 32, "blocks"), (16, 32, "blocks"), (16, 32, "gather"), (4, 16, "gather")],
)
def test_lanes_of_other_machines(lanes, registers, visit):
    check(Case(c_out=32, lanes=lanes, registers=registers, visit=visit, open_in=True))


@pytest.mark.parametrize(
    ("c_in", "size", "unit_in", "order"),
    [
        (24, (6, 7), 8, "blocks"),
        (32, (2, 2), 16, "blocks"),
        (24, (6, 7), 4, "window_outer"),
        (20, (6, 7), 1, "window_outer"),
        (24, (2, 3), 2, "channel_outer"),
    ],
)
@pytest.mark.parametrize("visit", ["blocks", "gather"])
def test_orders_of_the_reduction(c_in, size, unit_in, order, visit):
    case = Case(c_in=c_in, size=size, unit_in=unit_in, visit=visit, open_in=True, batch=2)
    assert case.spec.reduction.order == order
    check(case)


@pytest.mark.parametrize(
    *pairwise(
        c_in__unit_in__open_in=[(40, 1, True), (36, 4, True), (21, 1, False)],
        size=[(2, 2), (3, 5), (9, 8)],
        visit=["all", "blocks", "gather"],
    )
)
def test_channels_by_chunks_with_few_registers(c_in, unit_in, open_in, size, visit):
    case = Case(c_in=c_in, c_out=24, size=size, visit=visit, unit_in=unit_in, open_in=open_in)
    case = replace(case, registers=16)
    assert case.spec.reduction.order == "channel_outer"
    check(case)


@pytest.mark.parametrize(
    *pairwise(
        groups__c_in__c_out=[
            (4, 32, 64),
            (2, 16, 48),
            (8, 32, 16),
            (3, 48, 48),
            (5, 20, 30),
            (7, 28, 35),
        ],
        visit=["all", "blocks", "group"],
        size=[(2, 2), (6, 7)],
        registers__by_lane=[(16, False), (32, False), (32, True)],
        stride=[(1, 1), (2, 1)],
    )
)
def test_groups_of_channels(groups, c_in, c_out, visit, size, registers, by_lane, stride):
    case = Case(groups=groups, c_in=c_in, c_out=c_out, visit=visit, size=size, stride=stride)
    check(replace(case, registers=registers, by_lane=by_lane, pools=visit != "group"))


@pytest.mark.parametrize(
    ("sizes", "merged"),
    [
        ((32, 128, 128), 16),
        ((32, 256, 256), 32),
        ((3, 72, 48), 3),
        ((6, 144, 96), 6),
        ((2, 24, 48), 1),
        ((12, 12, 24), 1),
        ((16, 16, 32), 2),
    ],
)
def test_groups_are_merged_until_they_are_whole_vectors(sizes, merged):
    assert merged_groups(*sizes, 8) == merged


@pytest.mark.parametrize(
    "epilogue",
    [
        {"bias": False},
        {"before": RELU},
        {"before": RELU6, "bias": False},
        {"before": RELU, "scale": True},
        {"residual": True},
        {"residual": True, "after": RELU},
        {"before": RELU6, "scale": True, "residual": True, "after": RELU6},
        {"after": Activation(-1.0, None), "residual": True, "bias": False},
        {"before": SILU, "scale": True, "residual": True, "after": SILU},
        {"before": PRELU, "scale": True, "residual": True, "after": AFFINE},
    ],
    ids=lambda e: "-".join(e),
)
@pytest.mark.parametrize("visit", ["blocks", "gather"])
def test_epilogues(epilogue, visit):
    check(Case(visit=visit, unit=2, fill=True, **epilogue))


@pytest.mark.parametrize(
    *pairwise(
        fill=[False, True],
        unit=[1, 2, 4, 8],
        batch__permuted=[(1, True), (3, True), (3, False)],
    )
)
def test_gather_units(unit, fill, batch, permuted):
    case = Case(c_out=24, visit="gather", unit=unit, fill=fill, batch=batch, open_in=True)
    check(replace(case, permutes=permuted))


@pytest.mark.parametrize(
    *pairwise(
        size=[(1, 1), (2, 2), (5, 4), (17, 18)],  # the last in parts of pixels
        c_out=[136, 200],  # the others in parts of output channels
        unit_in=[1, 8],
        registers=[16, 32],
    )
)
def test_gathering_in_parts(size, c_out, unit_in, registers):
    case = Case(c_in=40, c_out=c_out, size=size, visit="gather", open_in=True, unit_in=unit_in)
    check(replace(case, registers=registers))


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_blocks(fill, batch):
    check(Case(c_out=32, visit="blocks", fill=fill, batch=batch, open_in=True))


@pytest.mark.parametrize(
    *pairwise(
        size=[(1, 1), (2, 2), (3, 4)],
        c_in__unit_in=[(32, 8), (24, 1), (20, 2), (3, 1), (24, 24)],
        c_out__batch=[(40, 1), (21, 3)],
    )
)
def test_few_pixels_of_listed_inputs(size, c_in, unit_in, c_out, batch):
    case = Case(size=size, c_in=c_in, unit_in=unit_in, c_out=c_out, batch=batch, open_in=True)
    check(case)


@pytest.mark.parametrize(
    *pairwise(
        size=[(1, 1), (2, 2), (1, 3)],
        unit_in__open_in=[(8, True), (1, True), (8, False)],
        visit=["all", "blocks"],
    )
)
def test_few_pixels_of_several_blocks_together(size, unit_in, open_in, visit):
    case = Case(size=size, c_in=24, unit_in=unit_in, open_in=open_in, c_out=104, visit=visit)
    check(replace(case, registers=32, batch=3, fill=True, scale=True))


@pytest.mark.parametrize(
    *pairwise(
        visit=["all", "blocks", "gather", "group"],
        c_in__unit_in=[(16, 4), (16, 1), (15, 4)],
        open_in=[False, True],
    )
)
def test_products_by_lane(visit, c_in, unit_in, open_in):
    case = Case(c_in=c_in, unit_in=unit_in, open_in=open_in, visit=visit, lanes=4, by_lane=True)
    check(replace(case, registers=32, stride=(2, 1), batch=2 if visit != "group" else 1))
    kernel = direct_conv2d(case.spec).script()
    assert ("T.Shuffle" in kernel) == (c_in % 4 == 0 and (not open_in or unit_in == 4))


@pytest.mark.parametrize("quick", [False, True])
def test_only_listed_weights_that_are_not_quick_to_fetch_are_prefetched(quick):
    case = Case(c_in=24, unit_in=8, c_out=40, open_in=True, quick_weights=quick)
    assert ("T.prefetch(" in direct_conv2d(case.spec).script()) == (not quick)
    check(case)


@pytest.mark.parametrize("tile", [(1, 1), (1, 5), (2, 3), (4, 3), (9, 9)])
@pytest.mark.parametrize("visit", ["all", "blocks", "gather"])
def test_tiles_that_a_schedule_names(tile, visit):
    check(Case(size=(7, 6), visit=visit, tile=tile))


def test_few_pixels_with_strides_and_everything_in_the_epilogue():
    case = Case(size=(5, 7), stride=(2, 2), c_in=20, open_in=True, scale=True, before=RELU)
    check(replace(case, residual=True, after=RELU6, batch=2))
    check(replace(case, kernel=(1, 1), pad=(0, 0, 0, 0), bias=False))


def test_a_padded_block_among_the_listed():
    check(Case(c_out=21, visit="gather", unit=1, scale=True, fill=True, before=RELU))
    check(Case(c_out=20, visit="all", scale=True, batch=3))


@pytest.mark.parametrize("group_blocks", [1, 2])
@pytest.mark.parametrize("scale", [False, True])
def test_one_group_at_a_time(group_blocks, scale):
    check(Case(c_out=32, visit="group", group_blocks=group_blocks, scale=scale, before=RELU))


@pytest.mark.parametrize(("residual", "after"), [(False, RELU), (True, RELU), (True, PRELU)])
def test_closed_result(residual, after):
    case = Case(residual=residual, after=after, batch=3, c_out=13)
    convolution, spec = Convolution(case), case.spec
    y = unwritten(spec.y)
    closed = np.zeros((3, 13), bool)
    arguments = [blocked(convolution.residual, spec.residual) if spec.residual else closed]
    arguments += [pack_factors(convolution.factors[:1], spec.y)] if spec.factors else []
    compiled(conv2d_closed(spec))(*arguments, y)
    expected = convolution.activated(convolution.residual, after) * residual
    assert_close(plain(y, spec.y), expected)
    assert (halo_of(y, spec.y) == 0).all()


def test_a_list_changes_the_result_only_in_its_own_sample():
    case = Case(c_out=16, visit="blocks", batch=3)
    convolution = Convolution(case)
    everything = np.ones((3, case.c_in), bool)
    before = open_channels("open", 3, 16, 8)
    after = before.copy()
    after[1, 8:] = False
    one, other = (convolution.run(everything, o)[1] for o in (before, after))
    np.testing.assert_array_equal(one[[0, 2]], other[[0, 2]])
    assert np.isnan(other[1, 8:]).all()


def test_packed_weights_hold_each_weight_once_and_zeros():
    case = Case(c_in=5, c_out=11)
    weight = random(11, 5, 3, 3)
    for visit in ("all", "gather"):
        packed = pack_direct_weight(weight, Case(c_in=5, c_out=11, visit=visit).spec)
        assert packed.size == 16 * 5 * 9
        assert sorted(packed[packed != 0]) == sorted(weight.reshape(-1))
    np.testing.assert_array_equal(pack_channels(np.arange(11), case.spec.y)[11:], np.zeros(5))


@pytest.mark.parametrize("unit_in", [1, 8])
@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512", "snapdragon-845"])
def test_gathering_compiles_for_other_machines(unit_in, name):
    soc = load_soc(name)
    case = Case(visit="gather", open_in=True, unit_in=unit_in, lanes=soc.lanes)
    kernel = direct_conv2d(replace(case.spec, permutes=soc.permutes))
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    library = tvm.compile(module, target=soc.tvm_target(), tir_pipeline=TIR_PIPELINE)
    assembly = library.mod.inspect_source("asm")
    assert ("vpermps" in assembly) == (soc.permutes != "")
