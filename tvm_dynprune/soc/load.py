# SPDX-License-Identifier: Apache-2.0
"""SoCs by name, or by file."""

from pathlib import Path

from tvm_dynprune.errors import SocError
from tvm_dynprune.soc.host import detect_host
from tvm_dynprune.soc.model import HOST, Soc
from tvm_dynprune.soc.profile import list_profiles, read_profile, shipped_profile


def list_socs() -> list[str]:
    """Names that `load_soc` takes: ``host`` first, then the profiles that ship, sorted."""
    return [HOST, *list_profiles()]


def load_soc(name: str) -> Soc:
    """Return the profile of one SoC.

    Parameters
    ----------
    name
        ``host`` for this machine, the name of a profile in ``schedules/``, or a ``.toml`` file.

    Raises
    ------
    SocError
        There is no such profile (the message lists those there are), or it is malformed.
    """
    if name == HOST:
        return detect_host()
    if name.endswith(".toml") and Path(name).is_file():
        return read_profile(Path(name))
    if name not in list_profiles():
        known = ", ".join(list_socs())
        raise SocError(f"unknown SoC {name!r}: known are {known}; or the .toml file of a profile")
    return shipped_profile(name)
