# SPDX-License-Identifier: Apache-2.0
"""A proposed profile of a machine, from what it tells of itself."""

from itertools import groupby
from typing import Any

from tvm_dynprune.errors import SocError
from tvm_dynprune.soc.features import ARM_FEATURES, X86_FEATURES, assumed_features
from tvm_dynprune.soc.host import ARM_VECTORS, SIMILAR, x86_vectors
from tvm_dynprune.soc.machine import PARTS, USUAL_CACHES, Core, Machine
from tvm_dynprune.soc.model import Cluster, Soc
from tvm_dynprune.soc.profile import list_profiles, profile_text, shipped_profile

# Names of clusters, the fastest first, by how many there are.
_NAMES = {
    1: ("all",),
    2: ("big", "little"),
    3: ("big", "middle", "little"),
    4: ("prime", "big", "middle", "little"),
}
_SPEED = {mcpu: speed for speed, mcpu in enumerate(PARTS.values())}
_UNKNOWN_CPU = {"aarch64": "generic", "x86_64": "x86-64"}


def propose_profile(machine: Machine, name: str, day: str) -> str:
    """TOML of a profile, with what could not be found out in its comment.

    Parameters
    ----------
    machine
        See `read_machine`.
    name
        What ``--soc`` will call it.
    day
        When the machine was asked.

    Raises
    ------
    SocError
        The machine is neither x86-64 nor 64-bit ARM.
    """
    soc, costs_of = detect_soc(machine, name)
    what = ", ".join(filter(None, (machine.model, machine.system)))
    remarks = [
        "SPDX-License-Identifier: Apache-2.0",
        f"Detected on {day}: {machine.place}, {what}.",
    ]
    fastest = _groups(machine)[0][0]
    if fastest.mcpu is None:
        remarks.append("Processor: not told, or not known here; mcpu is one that runs on all.")
    if fastest.max_khz is None:
        remarks.append("Frequencies: not told, so clusters may have been taken for one.")
    if fastest.caches is None:
        remarks.append("Caches: not told; these are sizes that nearly every 64-bit processor has.")
    if machine.features is None:
        remarks.append("Features: not told; none is switched off.")
    cost = f"Taken over from {costs_of}, not measured: run scripts/fit_cost.py on the device."
    return profile_text(soc, remarks, cost)


def detect_soc(machine: Machine, name: str) -> tuple[Soc, str]:
    """A profile of a machine, and the name of the profile that its costs are of.

    The fastest cluster runs the network, as the scheduler puts a busy thread there.

    Raises
    ------
    SocError
        The machine is neither x86-64 nor 64-bit ARM.
    """
    if machine.architecture not in _UNKNOWN_CPU:
        raise SocError(
            f"{machine.place} is {machine.architecture}: profiles are for x86_64, aarch64"
        )
    x86 = machine.architecture == "x86_64"
    unknown = _UNKNOWN_CPU[machine.architecture]
    groups = _groups(machine)
    clusters = []
    for cluster, cores in zip(_names(groups), groups, strict=True):
        khz = cores[0].max_khz
        mhz = None if khz is None else khz // 1000
        clusters.append(Cluster(cluster, len(cores), cores[0].mcpu or unknown, mhz))
    target = _target(machine, clusters[0].mcpu)
    lanes, registers = x86_vectors(assumed_features(target)) if x86 else ARM_VECTORS
    l1d, l2, l3 = groups[0][0].caches or USUAL_CACHES
    costs_of = _similar(clusters[0].mcpu, x86, lanes)
    soc = Soc(
        name=name,
        description=machine.model or f"{machine.place} ({clusters[0].mcpu})",
        target=target,
        clusters=tuple(clusters),
        network_cluster=clusters[0].name,
        lanes=lanes,
        vector_registers=registers,
        l1d_kib=l1d,
        l2_kib=l2,
        l3_kib=l3,
        cost=shipped_profile(costs_of).cost,
    )
    return soc, costs_of


def _groups(machine: Machine) -> list[list[Core]]:
    """Cores that are alike, the fastest ones first."""

    def speed(core: Core) -> tuple[int, int]:
        return core.max_khz or 0, _SPEED.get(core.mcpu or "", 0)

    ordered = sorted(machine.cores, key=speed, reverse=True)
    return [list(cores) for _, cores in groupby(ordered, lambda core: (core.max_khz, core.mcpu))]


def _names(groups: list[list[Core]]) -> tuple[str, ...]:
    if len(groups) not in _NAMES:
        return tuple(f"cluster{index}" for index in range(len(groups)))
    names = _NAMES[len(groups)]
    if len(groups) == 3 and len(groups[0]) == 1:
        names = ("prime", "big", "little")
    return names


def _target(machine: Machine, mcpu: str) -> dict[str, Any]:
    """LLVM's target, without the features that the machine's kernel does not list."""
    present = machine.features
    if machine.architecture == "x86_64":
        target: dict[str, Any] = {"mtriple": "x86_64-linux-gnu", "mcpu": mcpu}
        assumed = assumed_features(target)
        lacking = set() if present is None else assumed - present
        absent = [f"-{name}" for name in X86_FEATURES if name in lacking]
        return target | ({"mattr": absent} if absent else {})
    android = "android" in machine.system.lower()
    system = "linux-android26" if android else "linux-gnu"
    target = {"mtriple": f"aarch64-unknown-{system}", "mcpu": mcpu}
    return target | {"mattr": ["+neon", *_arm_differences(assumed_features(target), present)]}


def _arm_differences(assumed: set[str], present: frozenset[str] | None) -> list[str]:
    """What to add to, and to take from, the features that LLVM assumes."""
    # The kernels are NEON's and have not run with SVE, which many phones' kernels hide.
    changes = ["-sve"] if "sve" in assumed else []
    for feature, kernel in ARM_FEATURES.items():
        if present is not None and feature not in ("neon", "sve", "sve2"):
            if feature in assumed and kernel not in present:
                changes.append(f"-{feature}")
            elif feature not in assumed and kernel in present:
                changes.append(f"+{feature}")
    return changes


def _similar(mcpu: str, x86: bool, lanes: int) -> str:
    """Name of the shipped profile whose costs to take: of the same processor, if there is one."""
    same = [name for name in list_profiles() if shipped_profile(name).target["mcpu"] == mcpu]
    return same[0] if same and mcpu != "generic" else SIMILAR[x86, lanes]
