# SPDX-License-Identifier: Apache-2.0
"""TunedKernel: what tuning found out about a convolution, for the compiler to choose by."""

from dataclasses import dataclass

from tvm_dynprune.kernels.schedule import Schedule


@dataclass(frozen=True)
class OpenCost:
    """Time of a kernel by the open channels at its input and output, fitted to measurements.

    ``seconds = c0 + c1 * open_in + c2 * open_out + c3 * open_in * open_out``, in channels: what is
    done per call, per channel that is read (Winograd's transform) or written, and per pair.

    Attributes
    ----------
    lowering
        As in `ChooseLowering`.
    schedule
        What was measured.
    coefficients
        c0 to c3, in the unit of the log, none below 0.
    error
        Median relative error on open sets that were not fitted to.
    """

    lowering: str
    schedule: Schedule
    coefficients: tuple[float, float, float, float]
    error: float

    def seconds(self, open_in: float, open_out: float) -> float:
        """Predicted time; `open_in` and `open_out` are numbers of channels."""
        c0, c1, c2, c3 = self.coefficients
        return c0 + c1 * open_in + c2 * open_out + c3 * open_in * open_out


@dataclass(frozen=True)
class TunedKernel:
    """A convolution's best schedule at the open lists that it was tuned for, and what else it has.

    `costs` is empty if time against open channels was not measured.
    """

    schedule: Schedule
    costs: tuple[OpenCost, ...] = ()

    def choose(self, open_in: float, open_out: float) -> tuple[str, Schedule]:
        """Lowering and schedule for these numbers of open channels.

        What was best in tuning stays unless another is faster by more than the fits may be wrong.
        Conditionals are left out: they need zeros written before them, and a module with one has no
        memory plan, neither of which is in a kernel's time.
        """
        same = (c for c in self.costs if (c.lowering, c.schedule) == ("indexed", self.schedule))
        own = next(same, None)
        if own is None:
            return "indexed", self.schedule
        others = [cost for cost in self.costs if cost.lowering != "if"]
        best = min(others, key=lambda cost: cost.seconds(open_in, open_out))
        margin = 1 + own.error + best.error
        if best.seconds(open_in, open_out) * margin > own.seconds(open_in, open_out):
            best = own
        return best.lowering, best.schedule
