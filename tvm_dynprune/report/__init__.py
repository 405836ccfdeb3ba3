# SPDX-License-Identifier: Apache-2.0
"""Measurements → one self-contained HTML page."""

from tvm_dynprune.report.html import write_report as write_report
from tvm_dynprune.report.measurement import (
    Bench as Bench,
    Run as Run,
    read_measurement as read_measurement,
)
