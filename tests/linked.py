# SPDX-License-Identifier: Apache-2.0
"""Libraries instead of just-in-time compilation: TVM's compiler of that kind always optimises."""

import tempfile
from pathlib import Path

import tvm
from tvm import relax


def linked(executable: tvm.runtime.Executable) -> tvm.runtime.Module:
    """The executable's code, linked and loaded: three times as soon, if it is not optimised."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "linked.so")
        executable.export_library(path)
        return tvm.runtime.load_module(path)


def virtual_machine(executable: relax.VMExecutable) -> relax.VirtualMachine:
    """A virtual machine for a network."""
    return relax.VirtualMachine(linked(executable), tvm.cpu())
