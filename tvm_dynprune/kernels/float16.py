# SPDX-License-Identifier: Apache-2.0
"""Kernels in half precision, made of those in single precision.

Tensors, weights and what accumulates products become float16. A sum, difference, product, maximum
or minimum that is stored in float16 is computed in float16, twice as many at a time. All else stays
float32: what sums up values that are no products, as poolings, norms and the totals of chunks of
products do, since a long sum outgrows what float16 can add to it; divisions, exponentials and what
is made of them; comparisons.
"""

from collections.abc import Collection
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call, Expr, TensorLoad, Var
from tvm.s_tir import renew_defs
from tvm.target import codegen
from tvm.tirx import BufferLoad, BufferStore, PrimFunc
from tvm.tirx.buffer import BufferType

LARGEST = 65504.0
_ARITHMETIC = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Max, tirx.Min)
_FENCE = "llvm.arithmetic.fence"


def in_float16(kernel: PrimFunc, params: Collection[int], *, allocations: bool = True) -> PrimFunc:
    """The kernel with float16 for its parameters of these numbers.

    Parameters
    ----------
    kernel
        One whose tensors are float32, or anything but floating point.
    params
        Which parameters become float16.
    allocations
        What it allocates does, too, but for sums of values that are no products.
    """
    return _Float16(kernel, params, allocations=allocations).result()


class _Float16:
    def __init__(self, kernel: PrimFunc, params: Collection[int], *, allocations: bool) -> None:
        self.kernel = kernel = renew_defs(kernel)  # others may be made of it, too
        self.allocations = allocations
        self.half = {param for i, param in enumerate(kernel.params) if i in params}
        self.kept = {*kernel.params} - self.half
        self.buffers: dict[Var, Var] = {}

    def result(self) -> PrimFunc:
        self._keep_sums()
        callbacks = [
            (TensorLoad, self._load),
            (BufferStore, self._store),
            (Call, self._call),
            (Var, self._buffer),
        ]
        new = tvm_ffi.structural_map(self.kernel, callbacks)
        return PrimFunc(list(new.params), new.body, attrs=new.attrs)  # its type is made anew

    def _keep_sums(self) -> None:
        """Keep in float32 what is added to, if no products are."""
        sums: set[Var] = set()
        products: set[Var] = set()

        def look(store: BufferStore) -> BufferStore:
            added = _added(store)
            if added is not None:
                (products if isinstance(added, tirx.Mul) else sums).add(store.buffer)
            return store

        tvm_ffi.structural_map(self.kernel.body, [(BufferStore, look)])
        self.kept |= sums - products

    def _buffer(self, var: Var) -> Var:
        ty = var.ty
        if not isinstance(ty, BufferType) or str(ty.dtype) != "float32" or var in self.kept:
            return var
        if not self.allocations and var not in self.half:
            return var
        if var not in self.buffers:
            self.buffers[var] = tirx.decl_buffer(
                ty.shape,
                "float16",
                var.name,
                strides=ty.strides,
                elem_offset=ty.elem_offset,
                scope=ty.storage_scope,
                data_alignment=ty.data_alignment,
                offset_factor=ty.offset_factor,
                layout=ty.layout,
            )
        return self.buffers[var]

    def _load(self, load: TensorLoad) -> Expr:
        if str(load.source.dtype) != "float16":
            return load
        load = BufferLoad(load.source, load.indices)
        return tirx.Cast(_of(load, "float32"), load)

    def _store(self, store: BufferStore) -> BufferStore:
        if str(store.buffer.dtype) != "float16":
            return store
        value = _narrow(store.value)
        if value is None:
            value = tirx.Cast(_of(store.value, "float16"), store.value)
        return BufferStore(store.buffer, value, store.indices)

    def _call(self, call: Call) -> Expr:
        if _name(call) == "tirx.address_of" and isinstance(call.args[0], tirx.Cast):
            return tirx.address_of(call.args[0].value)
        return call


def _added(store: BufferStore) -> Expr | None:
    """What a store adds to an element of its buffer, if that is what it does."""
    if not isinstance(store.value, tirx.Add):
        return None
    for own, other in ((store.value.a, store.value.b), (store.value.b, store.value.a)):
        if isinstance(own, TensorLoad) and own.source.same_as(store.buffer):
            return other
    return None


def _narrow(value: Expr) -> Expr | None:
    """A float32 expression computed in float16; None if there is more in it than arithmetic."""
    if isinstance(value, tirx.Cast):
        inner = value.value
        return inner if "float16" in str(inner.ty) else tirx.Cast(_of(value, "float16"), inner)
    if isinstance(value, tirx.FloatImm):
        return tirx.FloatImm("float16", min(max(value.value, -LARGEST), LARGEST))
    if isinstance(value, _ARITHMETIC):
        return _rebuilt(type(value), [value.a, value.b])
    if isinstance(value, tirx.Select):
        return _rebuilt(
            lambda *both: tirx.Select(value.condition, *both), [value.true_value, value.false_value]
        )
    if isinstance(value, tirx.Broadcast):
        return _rebuilt(lambda one: tirx.Broadcast(one, value.lanes), [value.value])
    if isinstance(value, tirx.Shuffle):
        return _rebuilt(lambda *parts: tirx.Shuffle(parts, value.indices), list(value.vectors))
    if isinstance(value, Call) and _name(value) == "tirx.if_then_else":
        condition, *both = value.args
        return _rebuilt(lambda *both: tirx.if_then_else(condition, *both), both)
    if isinstance(value, Call) and _is_fence(value):
        return _rebuilt(lambda x: tirx.call_llvm_pure_intrin(str(x.ty), _FENCE, x), [value.args[1]])
    return None


def _rebuilt(build: Any, operands: list[Expr]) -> Expr | None:
    narrowed = [_narrow(operand) for operand in operands]
    return None if any(one is None for one in narrowed) else build(*narrowed)


def _is_fence(call: Call) -> bool:
    is_intrinsic = _name(call) == "tirx.call_llvm_pure_intrin"
    return is_intrinsic and int(call.args[0]) == codegen.llvm_lookup_intrinsic_id(_FENCE)


def _name(call: Call) -> str:
    return str(getattr(call.op, "name", ""))


def _of(value: Expr, dtype: str) -> str:
    """`dtype` with the lanes of a value."""
    return str(value.ty).replace("float16", dtype).replace("float32", dtype)
