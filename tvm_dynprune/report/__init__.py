# SPDX-License-Identifier: Apache-2.0
"""Measurements and trainings → one self-contained HTML page."""

from tvm_dynprune.report.html import write_report as write_report
from tvm_dynprune.report.inputs import read_input as read_input
from tvm_dynprune.report.measurement import (
    Bench as Bench,
    Calibration as Calibration,
    Run as Run,
    read_measurement as read_measurement,
)
from tvm_dynprune.report.training import Training as Training
