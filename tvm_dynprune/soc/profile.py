# SPDX-License-Identifier: Apache-2.0
"""Profiles as TOML files: reading them strictly, and writing them."""

import json
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from tvm_dynprune.errors import SocError
from tvm_dynprune.files import shipped
from tvm_dynprune.soc.model import Cluster, Cost, Soc

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

TARGET_KEYS = {"mtriple": str, "mcpu": str, "mattr": list}
REQUIRED_TARGET_KEYS = ("mtriple", "mcpu")
CLUSTER_KEYS = [field.name for field in fields(Cluster)]
REQUIRED_CLUSTER_KEYS = [name for name in CLUSTER_KEYS if name != "max_mhz"]
MAY_BE_ZERO = ("l3_kib",)


def list_profiles() -> list[str]:
    """Names of the profiles that ship, sorted."""
    return sorted(path.stem for path in shipped("schedules").glob("*.toml"))


def shipped_profile(name: str) -> Soc:
    """Read a profile that ships."""
    return read_profile(shipped("schedules") / f"{name}.toml")


def read_profile(path: Path) -> Soc:
    """Read one profile; keys that are missing, unknown or of the wrong type are errors.

    Raises
    ------
    SocError
        The file is no TOML or no profile, or it contradicts itself; the message names the file
        and the key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SocError(f"{path}: not a TOML file: {error}") from None
    kinds = {field.name: field.type for field in fields(Soc) if field.name != "name"}
    _check_keys(path, "", table, kinds.keys(), required=kinds.keys())
    for key, kind in kinds.items():
        if kind is int:
            _check_number(path, key, table[key])
        elif kind is str:
            _check_text(path, key, table[key])
    _check_target(path, table["target"])
    read = {"cost": _read_cost(path, table["cost"]), "clusters": _read_clusters(path, table)}
    return Soc(name=path.stem, **table | read)


def _read_clusters(path: Path, table: dict[str, Any]) -> tuple[Cluster, ...]:
    """Clusters with different names, of which one runs the network and is the target."""
    rows = table["clusters"]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise SocError(f"{path}: clusters is not a list of tables with {', '.join(CLUSTER_KEYS)}")
    for row in rows:
        _check_keys(path, "clusters.", row, CLUSTER_KEYS, required=REQUIRED_CLUSTER_KEYS)
        for key, value in row.items():
            check = _check_text if key in ("name", "mcpu") else _check_number
            check(path, f"clusters.{key}", value)
    cpus = {row["name"]: row["mcpu"] for row in rows}
    if len(cpus) < len(rows):
        raise SocError(f"{path}: two clusters have the same name")
    chosen, cpu = table["network_cluster"], table["target"]["mcpu"]
    if chosen not in cpus:
        raise SocError(f"{path}: network_cluster = {chosen!r} is none of {', '.join(cpus)}")
    if cpu != cpus[chosen]:
        raise SocError(
            f"{path}: target.mcpu = {cpu!r}, but cluster {chosen!r}, which runs the network, is "
            f"{cpus[chosen]!r}"
        )
    return tuple(Cluster(**row) for row in rows)


def _read_cost(path: Path, table: object) -> Cost:
    keys = [field.name for field in fields(Cost)]
    if not isinstance(table, dict):
        raise SocError(f"{path}: cost is not a table with {', '.join(keys)}")
    _check_keys(path, "cost.", table, keys, required=keys)
    for key, value in table.items():
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise SocError(f"{path}: cost.{key} = {value!r} is not a positive number")
    return Cost(**table)


def _check_target(path: Path, target: object) -> None:
    if not isinstance(target, dict):
        raise SocError(f"{path}: target is not a table with {', '.join(TARGET_KEYS)}")
    _check_keys(path, "target.", target, TARGET_KEYS.keys(), required=REQUIRED_TARGET_KEYS)
    for key, value in target.items():
        if not isinstance(value, TARGET_KEYS[key]):
            kind = TARGET_KEYS[key].__name__
            raise SocError(f"{path}: target.{key} = {value!r} is not a {kind}")
    for one in target.get("mattr", []):
        if not isinstance(one, str) or not re.fullmatch(r"[+-][\w.-]+", one):
            raise SocError(f"{path}: target.mattr has {one!r}: each is +FEATURE or -FEATURE")


def _check_number(path: Path, key: str, value: object) -> None:
    if type(value) is not int or value < (0 if key in MAY_BE_ZERO else 1):
        raise SocError(f"{path}: {key} = {value!r} is not a positive whole number")


def _check_text(path: Path, key: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise SocError(f"{path}: {key} = {value!r} is not a text")


def _check_keys(
    path: Path, prefix: str, table: Any, known: Collection[str], *, required: Collection[str]
) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        names = ", ".join(prefix + key for key in unknown)
        raise SocError(f"{path}: unknown key {names}; known are {', '.join(known)}")
    missing = [prefix + key for key in required if key not in table]
    if missing:
        raise SocError(f"{path}: missing key {', '.join(missing)}")


def profile_text(soc: Soc, remarks: Sequence[str], cost_remark: str) -> str:
    """TOML that `read_profile` reads as the same SoC.

    Parameters
    ----------
    soc
        Its name becomes that of the file.
    remarks
        Lines of the comment at the top: where the figures come from.
    cost_remark
        Where the costs come from.
    """
    lines = [f"# {line}" for line in remarks]
    for key, value in asdict(soc).items():
        if isinstance(value, str | int) and key != "name":
            lines.append(f"{key} = {_toml(value)}")
    for cluster in soc.clusters:
        lines += ["", "[[clusters]]", *_pairs(asdict(cluster))]
    lines += ["", "[target]", *_pairs(soc.target)]
    lines += ["", f"# {cost_remark}", "[cost]", *_pairs(asdict(soc.cost))]
    return "\n".join(lines) + "\n"


def _pairs(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in table.items() if value is not None]


def _toml(value: Any) -> str:
    return json.dumps(value)  # of texts, numbers and lists of texts, JSON is TOML
