# SPDX-License-Identifier: Apache-2.0
"""Load TVM without PyTorch.

TVM and apache-tvm-ffi import torch wherever they find it, the latter because of a conflict that is
known from Windows. A deployed network has no use for it, and would pay seconds and hundreds of
megabytes. Who imports torch later still gets it.
"""

import sys

if not {"tvm", "tvm_ffi", "torch"} & set(sys.modules):
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` fail
    try:
        import tvm as tvm
    finally:
        del sys.modules["torch"]
