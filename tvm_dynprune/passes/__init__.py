# SPDX-License-Identifier: Apache-2.0
"""Relax → Relax and TIR, one pass per file; `pipeline` is the table of contents."""
