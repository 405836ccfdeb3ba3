# SPDX-License-Identifier: Apache-2.0
"""LayoutPlan: which tensors live in blocked layout, with what halo, and who must fill.

A tensor is blocked if a kernel of ours produces it, or if it is computed elementwise, by a scale
for each channel, or by concatenation along the channels, from blocked tensors. Its halo is the
largest padding of its readers. A producer *fills* its closed channels with zeros if a reader does
not go by the same list.
"""

from math import prod

from tvm import relax
from tvm.relax import Var

from tvm_dynprune.kernels.feature_map import FeatureMap
from tvm_dynprune.kernels.transposed_conv2d import halo_needed
from tvm_dynprune.passes.activations import clip_keeps_zero
from tvm_dynprune.passes.composite import NORMS, SUMS, CompositeCall, as_composite, geometry_of
from tvm_dynprune.passes.dataflow import Dataflow, Functions, op_name, operands, result_of, shape_of

_WITHOUT_HALO = ("max_pool2d", "global_average", "resize2d", "affine", *NORMS)


class LayoutPlan:
    """The layout decisions for one function with composite calls."""

    def __init__(self, func: relax.Function, functions: Functions, lanes: int) -> None:
        self.flow, self.lanes = Dataflow(func), lanes
        self.composites: dict[Var, CompositeCall] = {}
        self._leader: dict[Var, Var] = {}
        self._filled: dict[Var, bool] = {}
        self._decides: dict[Var, bool] = {}
        self.blocked: set[Var] = set()
        for binding in self.flow.bindings:
            composite = as_composite(functions, binding.value)
            if composite is not None:
                self.composites[binding.var] = composite
                self.blocked.add(binding.var)
            elif self._stays_blocked(binding.value):
                self.blocked.add(binding.var)
                for operand in operands(binding.value):
                    if op_name(binding.value) == "concat" or _same_shapes([operand, binding.var]):
                        self._leader[self._lead(operand)] = self._lead(binding.var)
        self._halo = self._halos()
        self._holder = self._holders()
        fields = operands(result_of(func))
        # What ExposeGates adds to the results is no result of the network.
        self._results = set(fields[: int((func.attrs or {}).get("num_outputs", len(fields)))])

    def feature_map(self, var: Var) -> FeatureMap:
        """The blocked layout of a tensor (N, C, H, W)."""
        shape = shape_of(var)
        narrow = 2 * shape[1] <= self.lanes and self._feeds_convolutions(var)
        lanes = shape[1] if narrow else self.lanes
        before, behind = self._blocks_around(var)
        return FeatureMap(*shape, lanes, self._halo.get(self._lead(var), 0), before, behind)

    def pooling(self, var: Var) -> Var | None:
        """The global average pooling of the tensor that holds `var`."""
        for user in self.flow.users.get(self.holder(var), []):
            composite = self.composites.get(user)
            if composite is not None and composite.kind == "global_average":
                return user
        return None

    def holder(self, var: Var) -> Var:
        """In whose tensor `var` is computed: its concatenation's, or its own."""
        return self._holder.get(var, var)

    def is_last_user(self, var: Var, of: Var) -> bool:
        """Whether nobody reads a kernel's result `of` once `var` is computed.

        Only of large kernels is it known when they run: others are fused and merged, and what a
        branch needs moves there.
        """
        if of not in self.composites or of in self._holder or of in self.flow.outputs:
            return False
        if any(str(c.attribute("lowering")) == "if" for c in self.composites.values()):
            return False
        order = {binding.var: i for i, binding in enumerate(self.flow.bindings)}
        users = [user for user in self.flow.users[of] if not user.same_as(self.pooling(of))]
        are_large = all(user in self.composites and not self.decides(user) for user in users)
        return are_large and all(order[user] <= order[var] for user in users)

    def parts(self, var: Var) -> list[Var]:
        """What is computed in the tensor that holds `var`: `var`, or a concatenation's operands."""
        if var not in self._holder:
            return [var]
        return list(self.flow.value(self._holder[var]).args[0].fields)

    def _blocks_around(self, var: Var) -> tuple[int, int]:
        """Blocks before and behind `var` in the tensor that holds it."""
        parts = self.parts(var)
        blocks = [shape_of(part)[1] // self.lanes for part in parts]
        at = next(i for i, part in enumerate(parts) if part.same_as(var))
        return sum(blocks[:at]), sum(blocks[at + 1 :])

    def _holders(self) -> dict[Var, Var]:
        """Operand → concatenation, of concatenations of what kernels compute for nobody else."""
        holders = {}
        for binding in self.flow.bindings:
            if binding.var in self.blocked and op_name(binding.value) == "concat":
                parts = list(binding.value.args[0].fields)
                if len(set(parts)) == len(parts) and all(map(self._is_read_once, parts)):
                    holders |= dict.fromkeys(parts, binding.var)
        return holders

    def _is_read_once(self, var: Var) -> bool:
        composite = self.composites.get(var)
        if composite is None or composite.kind == "global_average":
            return False
        return self.flow.only_user(var) is not None

    def _feeds_convolutions(self, var: Var) -> bool:
        """Whether a plain tensor, as an image is, is read by convolutions only.

        They take one channel at a time, so that few channels need no padding.
        """
        if var in self.blocked:
            return False
        composites = [self.composites.get(user) for user in self.flow.users.get(var, [])]
        return all(
            composite is not None
            and composite.kind == "conv2d"
            and not _is(composite.arguments.get("residual"), var)
            for composite in composites
        )

    def fills(self, var: Var) -> bool:
        """Whether what computes `var` must write zeros into the channels it leaves out."""
        if var not in self._filled:
            if var in self._holder:
                return self.fills(self._holder[var])
            users = self.flow.users.get(var, [])
            reads_all = any(not self._goes_by_list(var, user) for user in users)
            self._filled[var] = var in self.flow.outputs or reads_all
        return self._filled[var]

    def decides(self, var: Var) -> bool:
        """Whether `var` is a step of a gate: it has no plane, and is read by such steps only."""
        if var not in self._decides:
            users, shape = self.flow.users.get(var, []), shape_of(var) or ()
            has_plane = len(shape) == 4 and shape[2:] != (1, 1)
            self._decides[var] = (
                bool(users)
                and not has_plane
                and all(self._is_gate_step(var, user) for user in users)
            )
        return self._decides[var]

    def _is_gate_step(self, var: Var, user: Var) -> bool:
        """Whether `user` is part of a gate as far as `var` is concerned."""
        if user in self.flow.outputs:
            return var not in self._results
        composite = self.composites.get(user)
        if composite is not None:
            roles = [role for role, value in composite.arguments.items() if _is(value, var)]
            if all(role in ("scale", "open_in", "open_out") for role in roles):
                return True
        return self.decides(user)

    def _goes_by_list(self, var: Var, user: Var) -> bool:
        """Whether `user` reads only channels of `var` that were computed."""
        composite = self.composites.get(user)
        if composite is None or _is(composite.arguments.get("residual"), var):
            return False
        if str(composite.attribute("lowering")) != "indexed":
            return False
        if any(role != "x" and _is(arg, var) for role, arg in composite.arguments.items()):
            return False
        if composite.kind in SUMS:
            return "open_in" in composite.arguments
        producer = self.composites.get(var)
        own = None if producer is None else producer.arguments.get("open_out")
        if own is None or not own.same_as(composite.arguments.get("open_out")):
            return False
        aligned = int(composite.attribute("open_unit")) % self.lanes == 0
        return aligned or not self.fills(user)

    def _stays_blocked(self, value: relax.Expr) -> bool:
        name, variables = op_name(value), operands(value)
        if not variables or not all(var in self.blocked for var in variables):
            return False
        if name in ("nn.relu", "nn.leakyrelu", "nn.gelu", "nn.gelu_tanh", "tanh"):
            return True
        if name == "clip":  # the halo stays 0
            return clip_keeps_zero(value)
        if name == "add":
            return len(value.args) == len(variables) and _same_shapes(variables)
        if name == "multiply" and len(variables) == 2:
            scale = min(variables, key=lambda v: prod(shape_of(v)))
            return _same_shapes(variables) or self._is_scale(scale, value)
        if name == "concat" and int(value.attrs.axis) == 1:
            parts = value.args[0].fields
            return all(isinstance(p, Var) and shape_of(p)[1] % self.lanes == 0 for p in parts)
        return False

    def _is_scale(self, var: Var, product: relax.Expr) -> bool:
        """Whether `var` is a number for each channel, without a halo: nobody else reads it."""
        shape = shape_of(product)
        return shape_of(var) == (*shape[:2], 1, 1) and self.flow.only_user(var) is not None

    def _lead(self, var: Var) -> Var:
        while var in self._leader and not self._leader[var].same_as(var):
            var = self._leader[var]
        return var

    def _halos(self) -> dict[Var, int]:
        halos: dict[Var, int] = {}
        for composite in self.composites.values():
            leader = self._lead(composite.arguments["x"])
            halos[leader] = max(halos.get(leader, 0), _halo_of(composite))
        return halos


def tensor(size: FeatureMap) -> relax.TensorType:
    """The type of a blocked tensor."""
    return relax.TensorType(size.shape, "float32")


def _same_shapes(variables: list[Var]) -> bool:
    return len({shape_of(var) for var in variables}) == 1


def _halo_of(composite: CompositeCall) -> int:
    """Pixels of zeros around its input that a kernel reads."""
    if composite.kind in _WITHOUT_HALO:
        return 0
    if composite.kind == "transposed_conv2d":
        call = composite.operator
        planes = shape_of(call.args[0])[2:], shape_of(call)[2:]
        return max(halo_needed(*side) for side in zip(*geometry_of(call), *planes, strict=True))
    return max(int(pad) for pad in composite.operator.attrs.padding)


def _is(argument: relax.Expr | None, var: Var) -> bool:
    return argument is not None and argument.same_as(var)
