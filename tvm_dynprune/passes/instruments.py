# SPDX-License-Identifier: Apache-2.0
"""Pass instruments: check the module after every pass, and time the passes."""

import time

import tvm
from tvm import relax
from tvm.ir.instrument import PassInstrument

_AFTER_VM_LOWERING = ("LowerAllocTensor", "KillAfterLastUse", "LowerRuntimeBuiltin", "VMShapeLower")


@tvm.ir.instrument.pass_instrument
class CheckWellFormed(PassInstrument):
    """Raises at the first pass whose result is not well-formed Relax."""

    def run_after_pass(self, mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        is_relax = any(isinstance(f, relax.Function) for _, f in mod.functions_items())
        if is_relax and info.name not in _AFTER_VM_LOWERING:
            relax.analysis.well_formed(mod)


@tvm.ir.instrument.pass_instrument
class Timer:
    """Collects (pass name, milliseconds) in `times_ms`; passes inside a pass are counted in it."""

    def __init__(self) -> None:
        self.times_ms: list[tuple[str, float]] = []
        self._started: list[float] = []

    def run_before_pass(self, _mod: tvm.IRModule, _info: tvm.transform.PassInfo) -> None:
        self._started.append(time.perf_counter())

    def run_after_pass(self, _mod: tvm.IRModule, info: tvm.transform.PassInfo) -> None:
        self.times_ms.append((info.name, (time.perf_counter() - self._started.pop()) * 1e3))
