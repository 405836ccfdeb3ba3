# SPDX-License-Identifier: Apache-2.0
"""A dense network that a gated one starts from and learns from."""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from tvm_dynprune.errors import CheckpointError
from tvm_dynprune.nn.checkpoint import CheckpointInfo, load_checkpoint

TEMPERATURE = 2.0


def load_teacher(folder: Path, student: CheckpointInfo) -> nn.Module:
    """Read the checkpoint of a dense network, in evaluation mode.

    Raises
    ------
    CheckpointError
        It is none, has gates, or is of another network or other classes than the student's.
    """
    teacher, info = load_checkpoint(folder)
    for what in ("network", "classes"):
        if getattr(info, what) != getattr(student, what):
            raise CheckpointError(
                f"{folder}: its {what} are {getattr(info, what)}, those to be trained "
                f"{getattr(student, what)}: start from a checkpoint of the same network and data"
            )
    if info.gate is not None:
        raise CheckpointError(f"{folder}: it has gates: start from one trained with --gate none")
    return teacher.requires_grad_(False)


def copy_weights(teacher: nn.Module, student: nn.Module) -> None:
    """Give a gated network the weights and statistics of the same network without gates."""
    own = student.state_dict()
    student.load_state_dict(own | teacher.state_dict())


def distillation_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the batch of KL(teacher || student) at temperature T, times T squared.

    Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", arXiv:1503.02531; T is
    `TEMPERATURE`.

    Parameters
    ----------
    logits, wanted
        The student's and the teacher's, (N, classes) float32.

    Returns
    -------
    torch.Tensor
        Scalar, not negative.
    """
    student = F.log_softmax(logits / TEMPERATURE, dim=1)
    target = F.log_softmax(wanted / TEMPERATURE, dim=1)
    divergence = F.kl_div(student, target, reduction="batchmean", log_target=True)
    return divergence * TEMPERATURE**2
