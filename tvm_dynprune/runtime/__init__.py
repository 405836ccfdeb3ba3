# SPDX-License-Identifier: Apache-2.0
"""Artifacts and the sessions that run them; never loads PyTorch."""

from tvm_dynprune.runtime import _tvm as _tvm  # before anything that imports tvm
from tvm_dynprune.runtime.artifact import Artifact as Artifact
from tvm_dynprune.runtime.session import Session as Session

__all__ = ["Artifact", "Session"]
