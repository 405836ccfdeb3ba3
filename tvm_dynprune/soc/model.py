# SPDX-License-Identifier: Apache-2.0
"""What a profile holds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_dynprune.errors import SocError

if TYPE_CHECKING:
    from tvm.target import Target

HOST = "host"
_PERMUTES = {8: "llvm.x86.avx2.permps", 16: "llvm.x86.avx512.permvar.sf.512"}


@dataclass(frozen=True)
class Cost:
    """What one core's kernels cost, relative to a vector multiply-add out of the nearest cache."""

    transform: float
    """One vector of Winograd's transformed input or output."""
    weight: float
    """Bringing one vector of weights to the core from memory."""
    cached_weight: float
    """The same from the last-level cache, where a small network's weights stay."""
    weight_transform: float
    """One vector of Winograd's weights, transformed where it is used."""
    gather: float
    """One vector of weights, put together out of open channels."""


@dataclass(frozen=True)
class Cluster:
    """Cores that are alike."""

    name: str
    """``prime``, ``big``, ``middle`` and ``little``, from the fastest on; ``all`` if alone."""
    cores: int
    """How many."""
    mcpu: str
    """LLVM's name of the processor."""
    max_mhz: int | None = None
    """Highest frequency; None where it is not published."""


@dataclass(frozen=True)
class Soc:
    """One SoC, as far as the compiler's decisions depend on it."""

    name: str
    """What ``--soc`` calls it."""
    description: str
    """One line for people."""
    target: dict[str, Any]
    """LLVM target: ``mtriple``, ``mcpu`` and, where needed, ``mattr`` (list of ``+x``, ``-x``).

    Features are those of the processor that LLVM knows by that name, but for ``mattr``.
    """
    clusters: tuple[Cluster, ...]
    """All its cores, from the fastest on."""
    network_cluster: str
    """Name of the cluster that runs the network, which the figures below are of."""
    lanes: int
    """float32 values in one SIMD register: the c of the NCHWc layout."""
    vector_registers: int
    """SIMD registers that one core's instructions can name."""
    l1d_kib: int
    """Level-1 data cache of one core, in KiB."""
    l2_kib: int
    """Level-2 cache as one core sees it, in KiB."""
    l3_kib: int
    """Last-level cache shared by the cores, in KiB; 0 where there is none."""
    cost: Cost
    """By which the compiler chooses between kernels; of a similar machine for ``host``."""

    @property
    def cores(self) -> int:
        """Cores that one inference may use: those of the cluster that runs the network."""
        return next(one.cores for one in self.clusters if one.name == self.network_cluster)

    @property
    def multiplies_by_lane(self) -> bool:
        """Whether one instruction multiplies a vector by one lane of another (fmla on ARM)."""
        return self.target["mtriple"].startswith(("aarch64", "arm64"))

    @property
    def permutes(self) -> str:
        """LLVM's name of the instruction that picks a vector's lanes by another; "" if none.

        The lanes of x86 say which extension it has.
        """
        x86 = self.target["mtriple"].startswith("x86_64")
        return _PERMUTES.get(self.lanes, "") if x86 else ""

    @property
    def cache_kib(self) -> int:
        """Of the last level, in KiB."""
        return max(self.l2_kib, self.l3_kib)

    def tvm_target(self) -> "Target":
        """TVM's target for code that runs on this SoC, with ``num-cores`` set.

        Raises
        ------
        SocError
            LLVM does not know the processor, so it would silently compile for a generic one.
        """
        import tvm
        from tvm.target import codegen

        triple, cpu = self.target["mtriple"], self.target["mcpu"]
        if not codegen.llvm_is_valid_cpu(cpu, triple):
            raise SocError(
                f"SoC {self.name}: LLVM {codegen.llvm_version_major()} knows no processor "
                f"{cpu!r} for {triple}; set mcpu to one it knows ('generic' always works on ARM)"
            )
        return tvm.target.Target({"kind": "llvm", "num-cores": self.cores, **self.target})
