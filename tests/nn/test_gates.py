# SPDX-License-Identifier: Apache-2.0
"""Gates: modes, thresholds, gradients, and what is added to the loss."""

import pytest
import torch
from torch import nn

from tvm_dynprune.nn.gate_kinds import OPEN_BIAS, LKAMGate
from tvm_dynprune.nn.gates import gates_of, set_gates, set_thresholds
from tvm_dynprune.nn.insert import insert_gates
from tvm_dynprune.nn.loss import budget_loss, compute_penalty, expected_mac_fraction
from tvm_dynprune.nn.macs import count_macs, plan_macs
from tvm_dynprune.nn.networks import build_network


def gate(group_size: int = 2) -> LKAMGate:
    """A gate of three inputs and four outputs with random weights, in evaluation mode."""
    torch.manual_seed(0)
    made = LKAMGate(3, 4, group_size).eval()
    nn.init.normal_(made.conv.weight)
    nn.init.normal_(made.conv.bias)
    return made


def logits_by_hand(made: LKAMGate, x: torch.Tensor) -> torch.Tensor:
    """(N, G), from the definition: mean over the pixels of the 1x1 convolution."""
    assert made.conv.bias is not None
    weight, bias = made.conv.weight.detach()[:, :, 0, 0], made.conv.bias.detach()
    return torch.einsum("nchw,gc->nghw", x, weight).mean((2, 3)) + bias


def between(logits: torch.Tensor) -> float:
    """A threshold that leaves about half of the logits open and is none of them."""
    ordered = logits.flatten().sort().values
    middle = len(ordered) // 2
    return float(ordered[middle - 1 : middle + 1].mean())


X = torch.rand(5, 3, 6, 7, generator=torch.Generator().manual_seed(1)) - 0.5


def test_new_gate_is_open_whatever_the_input() -> None:
    made = LKAMGate(3, 4, 2).eval()
    assert torch.equal(made(1e6 * X), torch.ones(5, 4, 1, 1))
    assert made.logits(X).flatten().tolist() == pytest.approx([OPEN_BIAS] * 10)


@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_hard_mask_is_the_decision_repeated_over_the_group(group_size: int) -> None:
    made = gate(group_size)
    wanted = logits_by_hand(made, X)
    made.threshold.fill_(between(wanted))
    decided = (wanted > made.threshold).float()
    assert 0 < decided.mean() < 1
    mask = made(X)
    assert mask.shape == (5, 4, 1, 1)
    assert torch.equal(mask[:, :, 0, 0], decided.repeat_interleave(group_size, 1))


def test_logits_at_the_threshold_are_closed() -> None:
    made = LKAMGate(3, 4, 2).eval()
    made.threshold.fill_(OPEN_BIAS)
    assert not made(X).any()


def test_soft_mask_is_a_sigmoid_of_the_given_slope() -> None:
    made = gate()
    made.mode, made.slope = "soft", 3.0
    made.threshold.fill_(0.2)
    wanted = torch.sigmoid(3 * (logits_by_hand(made, X) - 0.2)).repeat_interleave(2, 1)
    for training in (False, True):
        torch.testing.assert_close(made.train(training)(X)[:, :, 0, 0], wanted)


def test_open_mode_ignores_weights_and_threshold() -> None:
    made = gate()
    made.mode = "open"
    made.threshold.fill_(1e9)
    for training in (False, True):
        assert torch.equal(made.train(training)(X), torch.ones(5, 4, 1, 1))


def test_training_decides_as_evaluation_does() -> None:
    made = gate()
    made.threshold.fill_(between(logits_by_hand(made, X)))
    assert torch.equal(made.train()(X) > 0.5, made.eval()(X) > 0.5)


def test_straight_through_gradient_is_the_soft_one() -> None:
    """Hard forward, the gradient of the sigmoid backward."""
    weights = torch.rand(5, 4, 1, 1)
    gradients = []
    for mode in ("hard", "soft"):
        made = gate().train()
        made.mode, made.slope = mode, 2.0
        (made(X) * weights).sum().backward()
        assert made.conv.weight.grad is not None
        gradients.append(made.conv.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert gradients[0].abs().max() > 0


def test_mask_has_the_dtype_of_its_input() -> None:
    made = gate().train()
    with torch.autocast("cpu", torch.bfloat16):
        mask = made(X.bfloat16())
    assert mask.dtype == torch.bfloat16
    assert made.switches is not None
    assert made.switches.dtype == torch.float32


@pytest.mark.parametrize("group_size", [0, 3])
def test_group_size_that_does_not_divide(group_size: int) -> None:
    with pytest.raises(ValueError, match=f"{group_size} does not divide 4"):
        LKAMGate(3, 4, group_size)


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return insert_gates(build_network("fashion_cnn"), group_size=8)


def test_set_gates_and_thresholds() -> None:
    model = small_network()
    set_gates(model, "soft", slope=4.0)
    assert {(g.mode, g.slope) for g in gates_of(model).values()} == {("soft", 4.0)}
    set_gates(model, "open")
    assert {(g.mode, g.slope) for g in gates_of(model).values()} == {("open", 4.0)}
    set_thresholds(model, 0.5)
    set_thresholds(model, {"gates.features_10": -1.0})
    found = {name: g.threshold.item() for name, g in gates_of(model).items()}
    assert found.pop("gates.features_10") == -1.0
    assert set(found.values()) == {0.5}
    with pytest.raises(ValueError, match=r"no gate 'features\.10'.*gates\.features_10"):
        set_thresholds(model, {"features.10": 0.0})


def test_thresholds_are_saved_with_the_weights() -> None:
    model, other = small_network(), small_network()
    set_thresholds(model, 0.25)
    other.load_state_dict(model.state_dict())
    assert {g.threshold.item() for g in gates_of(other).values()} == {0.25}


def test_penalty_is_the_patents_formula() -> None:
    model = small_network().train()
    set_gates(model, "soft", slope=1.5)
    gates = gates_of(model)
    for i, made in enumerate(gates.values()):
        made.gain = 1.0 + i
        nn.init.normal_(made.conv.weight, std=0.2)
    model(torch.rand(6, 1, 28, 28))
    wanted = 0.0
    for made in gates.values():
        assert made.switches is not None
        count = made.switches.shape[1]
        per_input = [made.gain / (2 * count) * row.sum().item() for row in made.switches]
        wanted += sum(per_input) / len(per_input)
    assert compute_penalty(model).item() == pytest.approx(wanted, rel=1e-5)


def test_penalty_of_open_gates_is_half_the_gains() -> None:
    model = small_network().train()
    model(torch.rand(2, 1, 28, 28))
    assert compute_penalty(model).item() == pytest.approx(len(gates_of(model)) / 2)


def test_expected_mac_fraction_of_hard_gates_is_the_exact_one() -> None:
    model = small_network().train()
    for made in gates_of(model).values():
        nn.init.normal_(made.conv.weight, std=3.0)
    x = torch.rand(4, 1, 28, 28)
    model(x)
    plan = plan_macs(model, (1, 28, 28))
    fraction = expected_mac_fraction(model, plan).item()
    model(x)  # batch statistics decide in training, so count with them too
    masks = {
        name: g.switches.detach().round().double().repeat_interleave(g.group_size, 1)
        for name, g in gates_of(model).items()
        if g.switches is not None
    }
    exact = sum(float(macs.mean()) for macs in plan.executed(masks).values())
    assert 0 < fraction < 1
    assert fraction == pytest.approx(exact / plan.dense_total, rel=1e-5)


def test_budget_loss_is_the_squared_distance_and_closes_gates() -> None:
    model = small_network().train()
    set_gates(model, "hard", slope=1.0)
    model(torch.rand(4, 1, 28, 28))
    plan = plan_macs(model, (1, 28, 28))
    fraction = expected_mac_fraction(model, plan)
    loss = budget_loss(model, plan, 0.4)
    assert loss.item() == pytest.approx((fraction.item() - 0.4) ** 2, rel=1e-5)
    loss.backward()
    for made in gates_of(model).values():
        assert made.conv.bias is not None
        assert made.conv.bias.grad is not None
        # Going down the gradient lowers every logit.
        assert (made.conv.bias.grad > 0).all()


@pytest.mark.parametrize("model", [build_network("fashion_cnn"), small_network()])
def test_losses_without_decisions(model: nn.Module) -> None:
    with pytest.raises(RuntimeError, match="run the model with gates in training mode"):
        compute_penalty(model)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = small_network().train()
    dict(model.named_modules())["features.1"].eval()
    before = [module.training for module in model.modules()]
    statistics = {k: v.clone() for k, v in model.named_buffers()}
    count_macs(model, torch.rand(2, 1, 28, 28))
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers())
