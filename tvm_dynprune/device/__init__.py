# SPDX-License-Identifier: Apache-2.0
"""Phones and boards: linking for them, what is pushed to them, and an emulated one."""

from tvm_dynprune.device.bundle import build_bundle
from tvm_dynprune.device.emulator import EmulatedDevice
from tvm_dynprune.device.linker import find_linker, link_library

__all__ = ["EmulatedDevice", "build_bundle", "find_linker", "link_library"]
