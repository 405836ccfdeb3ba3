# SPDX-License-Identifier: Apache-2.0
"""Gates, gated networks and their training, in PyTorch (the extra ``train``)."""

from tvm_dynprune.nn.checkpoint import load_checkpoint as load_checkpoint
from tvm_dynprune.nn.export import export as export
from tvm_dynprune.nn.gates import set_gates as set_gates, set_thresholds as set_thresholds
from tvm_dynprune.nn.insert import insert_gates as insert_gates
from tvm_dynprune.nn.loss import compute_penalty as compute_penalty
from tvm_dynprune.nn.macs import count_macs as count_macs, plan_macs as plan_macs
from tvm_dynprune.nn.networks import build_network as build_network
from tvm_dynprune.nn.schedule import (
    gate_loss as gate_loss,
    start_gates as start_gates,
    step as step,
)
from tvm_dynprune.nn.train import TrainConfig as TrainConfig, train as train

__all__ = [
    "TrainConfig",
    "build_network",
    "compute_penalty",
    "count_macs",
    "export",
    "gate_loss",
    "insert_gates",
    "load_checkpoint",
    "plan_macs",
    "set_gates",
    "set_thresholds",
    "start_gates",
    "step",
    "train",
]
