# SPDX-License-Identifier: Apache-2.0
"""Load TVM without what a deployed network has no use for, before anything else imports it.

TVM and apache-tvm-ffi import torch wherever they find it, the latter because of a conflict that is
known from Windows: that takes seconds and hundreds of megabytes. Who imports torch later still gets
it. TVM's compiler is a library of its own, of another hundred megabytes of memory; TVM decides by a
variable of the environment whether to load it, once and for all.
"""

import os
import sys

_RUNTIME_ONLY = "TVM_USE_RUNTIME_LIB"


def load_tvm(*, compiler: bool = True) -> None:
    """Import TVM, with or without its compiler; nothing happens if it is imported already."""
    if {"tvm", "tvm_ffi"} & set(sys.modules):
        return
    hides_torch, given = "torch" not in sys.modules, os.environ.get(_RUNTIME_ONLY)
    if hides_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` fail
    if not compiler:
        os.environ[_RUNTIME_ONLY] = "1"
    try:
        import tvm as tvm
    finally:
        if hides_torch:
            del sys.modules["torch"]
        if not compiler and given is None:
            del os.environ[_RUNTIME_ONLY]
