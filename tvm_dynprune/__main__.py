# SPDX-License-Identifier: Apache-2.0
"""``python -m tvm_dynprune`` is the command ``tvm-dynprune``."""

from tvm_dynprune.cli import main

main()
