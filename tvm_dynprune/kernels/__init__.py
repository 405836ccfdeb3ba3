# SPDX-License-Identifier: Apache-2.0
"""The TIR kernels that the passes call: static shapes, loop bounds from lists of open channels."""
