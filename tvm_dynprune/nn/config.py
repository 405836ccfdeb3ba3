# SPDX-License-Identifier: Apache-2.0
"""How to train."""

from dataclasses import dataclass

from tvm_dynprune.nn.latency import LatencyTable

ACCURATE_THRESHOLD = -2.0
"""In logits: the lowest threshold for which a network with an `accurate_budget` is trained."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the defaults train the demo's network.

    Attributes
    ----------
    budget
        Wanted share of the dense MACs with thresholds of 0, in (0, 1]; without a meaning for a
        dense network and with a `gain`.
    accurate_budget
        Wanted share with all thresholds at `ACCURATE_THRESHOLD`; between the two the share goes
        linearly from one to the other. With None the network learns for thresholds of 0 only.
    soc, latency
        With a table the budgets are shares of the dense latency on the SoC it was made for.
    gain
        Instead of a budget: weight of `compute_penalty`, which rises from 0 during annealing.
    start
        Checkpoint of the same network without gates, to start from.
    distill
        Weight in [0, 1] of learning from the predictions of `start`; the labels have the rest.
    warm_up, anneal
        Shares of the training in which gates stay open, and in which the budget then falls from 1
        to its value while the sigmoid's slope rises.
    gate_learning_rate
        Of the gates, as a factor: decisions that change slowly can be followed by the network.
    norm_bias_learning_rate
        Of batch norms' biases, as a factor; 64 makes short trainings better (Jordan, section 3.4).
    average
        Decay per step of the moving average of weights and statistics, which is what is evaluated
        and saved; 0 for none.
    shift
        Pixels by which training images are shifted at most.
    floor
        Mean open fraction below which a gate is pushed open again, so that no layer dies.
    stuck_weight
        Weight of `stuck_loss`, which brings back gates that no gradient reaches.
    """

    network: str
    data: str
    gate: str | None = "lkam"
    group_size: int = 8
    budget: float = 0.35
    accurate_budget: float | None = None
    soc: str | None = None
    latency: LatencyTable | None = None
    gain: float | None = None
    start: str | None = None
    distill: float = 0.0
    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 0.05
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    gate_weight: float = 5.0
    floor: float = 0.15
    stuck_weight: float = 0.02
    gate_learning_rate: float = 0.2
    norm_bias_learning_rate: float = 1.0
    momentum: float = 0.9
    average: float = 0.0
    shift: int = 2
    warm_up: float = 0.1
    anneal: float = 0.25
    slope: tuple[float, float] = (1.0, 3.0)
    validation: int = 5000
    bf16: bool = True
    seed: int = 0
