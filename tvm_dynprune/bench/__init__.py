# SPDX-License-Identifier: Apache-2.0
"""Measuring: one engine per process, pinned, in turns."""
