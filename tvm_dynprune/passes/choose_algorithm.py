# SPDX-License-Identifier: Apache-2.0
"""ChooseAlgorithm: decide how each convolution is computed, as attribute ``algorithm``.

====================  ==============================================================================
``direct``            any convolution
``winograd_2``        F(2 x 2, 3 x 3), for 3x3 with steps of 1
``winograd_4``        F(4 x 4, 3 x 3), likewise
``winograd_strided``  F(4 x 4, 4 x 4) or F(4 x 4, 3 x 3) over squares of pixels (`space_to_depth`):
                      for 5x5 to 7x7 with steps of 2 on few channels
``<algorithm>_in``    the same, but skipping input channels only; where output channels open by
                      less than a vector, which otherwise is gathered
====================  ==============================================================================

The cheapest by `kernel_cost` is taken, at the open fractions that calibration measured, or half of
what gates may close. Weights that stay in the last-level cache from one input to the next, as
those of small networks do, cost less than what comes from memory. The costs stand in
``costs``, for ``--explain``.
Needs ChooseLowering before it; feeds LowerKernels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import tvm
from tvm import relax

from tvm_dynprune.kernels.space_to_depth import kernel_after
from tvm_dynprune.passes.composite import (
    SUMS,
    CompositeCall,
    as_composite,
    is_composite,
    kind_of,
    operator_of,
)
from tvm_dynprune.passes.dataflow import Dataflow, Functions, shape_of
from tvm_dynprune.passes.kernel_cost import (
    WinogradPlane,
    direct_cost,
    gaps_cost,
    gather_cost,
    winograd_cost,
)
from tvm_dynprune.soc import Cost

ASSUMED_OPEN = 0.7  # of each side, without calibration: half of the pairs
_FEW_CHANNELS = 16  # over squares of pixels, which are one block of channels


@tvm.transform.module_pass(opt_level=0, name="ChooseAlgorithm")
class ChooseAlgorithm:
    """Set `algorithm` on every composite convolution.

    Parameters
    ----------
    lanes
        float32 lanes of a vector register of the target.
    cost
        Of the target's kernels.
    cache_kib
        Of the target's last level.
    open_products
        Layer name → mean of open_in * open_out over calibration inputs, between 0 and 1.
    winograd
        Whether Winograd may be chosen; without it every kernel sums the products as they are.
    registers
        Of the target, where Winograd's weights may be transformed in them; 0 where they may not.
    """

    def __init__(
        self,
        lanes: int,
        cost: Cost,
        cache_kib: int,
        open_products: Mapping[str, float] | None = None,
        *,
        winograd: bool = True,
        registers: int = 0,
    ) -> None:
        self.lanes, self.cost, self.cache_kib = lanes, cost, cache_kib
        self.winograd, self.registers = winograd, registers
        self.open_products = dict(open_products or {})

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = dict(mod.functions_items())
        cached = fits_cache(mod, self.cache_kib)
        model = CostModel(self.lanes, self.cost, cached, self.winograd, self.registers)
        for global_var, func in functions.items():
            if is_composite(func) and kind_of(func) in SUMS:
                if "algorithm" not in func.attrs:
                    costs = model.costs(func, *self._open_fractions(func))
                    chosen = {
                        "algorithm": min(costs, key=lambda name: costs[name]),
                        "costs": json.dumps(costs),
                        "weights_quick": int(cached),
                    }
                    functions[global_var] = func.with_attrs(chosen)
        return tvm.IRModule(functions, attrs=mod.attrs)

    def _open_fractions(self, func: relax.Function) -> tuple[float, float]:
        gated = _gated_sides(func)
        layer, each = str(func.attrs["layer"]), ASSUMED_OPEN
        if layer in self.open_products and any(gated):
            each = self.open_products[layer] ** (1 / sum(gated))
        return each, each


@dataclass(frozen=True)
class CostModel:
    """What each algorithm costs on a target, by `kernel_cost`.

    Attributes
    ----------
    lanes, cost, registers
        Of the target; see `ChooseAlgorithm`.
    cached
        Whether the network's weights stay in the last-level cache; see `fits_cache`.
    winograd
        Whether Winograd is among the algorithms.
    """

    lanes: int
    cost: Cost
    cached: bool
    winograd: bool = True
    registers: int = 0

    def costs(self, func: relax.Function, open_in: float, open_out: float) -> dict[str, float]:
        """Return what each algorithm that can compute a composite convolution costs.

        Parameters
        ----------
        func
            The composite function, its lowering chosen.
        open_in, open_out
            Shares of its channels that are open, in [0, 1]; a side by which the kernel skips
            nothing counts as open.

        Returns
        -------
        dict
            By algorithm: vector multiply-adds, a linear function of each of the two shares.
        """
        c_out, c_in, *kernel = shape_of(func.params[_roles(func).index("weight")])
        height, width = shape_of(func.body)[2:]
        by_input, by_output = _gated_sides(func)
        channels, all_blocks = c_in * (open_in if by_input else 1.0), -(-c_out // self.lanes)
        blocks = all_blocks * (open_out if by_output else 1.0)
        size, cost = (height * width, kernel), self._cost()
        costs = {"direct": direct_cost(channels, blocks, *size, cost)}
        if self.winograd:
            costs |= self._winograd_costs(func, channels, blocks)
        if not self._gathers(func):
            return costs
        gathering = gather_cost(channels, blocks, kernel, cost)
        costs = {name: each + gathering for name, each in costs.items()}
        if self.winograd:
            in_only = {"direct": direct_cost(channels, all_blocks, *size, cost)}
            in_only |= self._winograd_costs(func, channels, all_blocks, in_only=True)
            gaps = 0.0
            if by_input and int(func.attrs["open_unit_in"]) % self.lanes:
                gaps = gaps_cost(channels, all_blocks, kernel, cost)
            costs |= {f"{name}_in": each + gaps for name, each in in_only.items()}
        return costs

    def _cost(self) -> Cost:
        return replace(self.cost, weight=self.cost.cached_weight) if self.cached else self.cost

    def _winograd_costs(
        self,
        func: relax.Function,
        channels: float,
        blocks: float,
        *,
        in_only: bool = False,
    ) -> dict[str, float]:
        """Costs by Winograd algorithm, but for gathering; `in_only` skips no output channels."""
        by_input, by_output = _gated_sides(func)
        gated, gathers = by_input or (by_output and not in_only), self._gathers(func)
        height, width = shape_of(func.body)[2:]
        costs = {}
        for name, side in self._winograd(func):
            if gathers and not in_only and side != 3:
                continue  # transformed at compile time, which is too much to gather
            plane = WinogradPlane(
                height,
                width,
                tile_side(name),
                side,
                gated,
                self.cached,
                gathers and not in_only,
                self.registers if side == 3 else 0,
            )
            each = channels if name != "winograd_strided" else 4 * channels
            costs[name] = winograd_cost(each, blocks, plane, self.lanes, self._cost())
        return costs

    def _winograd(self, func: relax.Function) -> list[tuple[str, int]]:
        """The Winograd algorithms that can compute the convolution, and their kernel's side."""
        call = operator_of(func)
        c_in = shape_of(call.args[1])[1]
        kernel, strides, dilation, pads = (
            shape_of(call.args[1])[2:],
            *(
                tuple(int(v) for v in value)
                for value in (call.attrs.strides, call.attrs.dilation, call.attrs.padding[:2])
            ),
        )
        is_square = kernel[0] == kernel[1] and pads[0] == pads[1]
        if kind_of(func) != "conv2d" or dilation != (1, 1) or not is_square:
            return []
        if strides == (1, 1) and kernel == (3, 3) and c_in % self.lanes == 0:
            return [("winograd_2", 3), ("winograd_4", 3)]
        side = kernel_after(kernel[0], pads[0])
        if strides == (2, 2) and side in (3, 4) and 4 * c_in <= _FEW_CHANNELS:
            return [("winograd_strided", side)]
        return []

    def _gathers(self, func: relax.Function) -> bool:
        """Whether going by the open output channels means to put vectors together."""
        unit = int(func.attrs["open_unit"])
        listed = "open_out" in _roles(func) and _is_indexed(func)
        return listed and unit % self.lanes != 0 and kind_of(func) == "conv2d"


def fits_cache(mod: tvm.IRModule, cache_kib: int) -> bool:
    """Whether all weights stay in the last-level cache from one input to the next."""
    return weights_kib(mod) <= cache_kib / 4  # the rest is for all else, and for other cores


def weights_kib(mod: tvm.IRModule) -> float:
    """Size of all layers' weights, as transformed for the largest tiles where they can be."""
    sizes = {}
    for func in mod.functions.values():
        if is_composite(func) and kind_of(func) in SUMS:
            roles = [str(role) for role in func.attrs["roles"]]
            shape = shape_of(func.params[roles.index("weight")])
            points = 36 if shape[2:] == (3, 3) else shape[2] * shape[3]
            sizes[str(func.attrs["layer"])] = 4 * shape[0] * shape[1] * points / 1024
    return sum(sizes.values())


def _roles(func: relax.Function) -> list[str]:
    return [str(role) for role in func.attrs["roles"]]


def _is_indexed(func: relax.Function) -> bool:
    return str(func.attrs["lowering"]) == "indexed"


def _gated_sides(func: relax.Function) -> list[bool]:
    """Whether the kernel goes by an open set at its input, and at its output."""
    # What is left of a skipped block when it is not skipped is dense.
    is_block = str(func.attrs["lowering"]) == "if" and bool(func.attrs.get("block", ""))
    is_dense = is_block or str(func.attrs["lowering"]) == "dense"
    return [not is_dense and role in _roles(func) for role in ("open_in", "open_out")]


def tile_side(algorithm: str) -> int:
    """Side of the tiles of a Winograd algorithm."""
    return 2 if algorithm.removesuffix("_in") == "winograd_2" else 4


@dataclass(frozen=True)
class Choice:
    """How one convolution is computed, and why; JSON for the manifest."""

    layer: str
    gated: bool
    lowering: str
    algorithm: str
    reason: str


def choices_of(func: relax.Function, functions: Functions) -> list[Choice]:
    """The choices for a function's convolutions, in its order."""
    found = []
    for binding in Dataflow(func).bindings:
        composite = as_composite(functions, binding.value)
        if composite is None or composite.kind not in SUMS:
            continue
        algorithm = str(composite.attribute("algorithm"))
        reason = _reason(algorithm, composite)
        gated = bool({"open_in", "open_out"} & composite.arguments.keys())
        lowering = str(composite.attribute("lowering"))
        found.append(Choice(composite.layer, gated, lowering, algorithm, reason))
    return found


def _reason(algorithm: str, composite: CompositeCall) -> str:
    if composite.attribute("schedule"):
        times = json.loads(str(composite.attribute("fitted", "{}"))).items()
        fitted = ", ".join(f"{name} {value:.4g}" for name, value in times)
        reason = f"tuned: {composite.attribute('schedule')}"
        return reason + (f"; fitted: {fitted}" if fitted else "")
    costs = json.loads(str(composite.attribute("costs")))
    others = [f"{name} {cost / costs[algorithm]:.2f}" for name, cost in costs.items()]
    return "no other candidate" if len(costs) == 1 else f"relative cost: {', '.join(others)}"
