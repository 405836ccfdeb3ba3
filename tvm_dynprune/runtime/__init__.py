# SPDX-License-Identifier: Apache-2.0
"""Artifacts and the sessions that run them; never loads PyTorch."""

from tvm_dynprune.load_tvm import load_tvm

load_tvm()

from tvm_dynprune.runtime.artifact import Artifact as Artifact  # noqa: E402
from tvm_dynprune.runtime.session import Session as Session  # noqa: E402

__all__ = ["Artifact", "Session"]
