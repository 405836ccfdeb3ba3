# SPDX-License-Identifier: Apache-2.0
"""How evolutionary search changes a candidate."""

from typing import Any

import numpy as np
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.schedule import Trace


@derived_object
class MutateDecision(ms.mutator.PyMutator):
    """Decide one of a candidate's decisions anew."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self._rng = seed, np.random.default_rng(seed)

    def _initialize_with_tune_context(self, context: ms.TuneContext) -> None:
        """Nothing depends on it."""

    def apply(self, trace: Trace, _) -> Trace | None:
        """Another trace; None if there is nothing to decide."""
        sampled = [inst for inst in trace.insts if inst.kind.name == "SampleCategorical"]
        if not sampled:
            return None
        chosen = sampled[self._rng.integers(len(sampled))]
        before, count = int(trace.decisions[chosen]), len(chosen.attrs[0])
        decision = (before + int(self._rng.integers(1, count))) % count
        return trace.with_decision(chosen, decision, True)

    def clone(self) -> Any:
        """With the same seed."""
        return MutateDecision(self.seed)
