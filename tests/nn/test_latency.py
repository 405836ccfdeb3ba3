# SPDX-License-Identifier: Apache-2.0
"""A latency target: the compiler's costs as the training sees them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.nn.small_networks import Inverted
from tests.nn.util import config, write_data
from tvm_dynprune.errors import CheckpointError
from tvm_dynprune.frontend import from_exported
from tvm_dynprune.latency import latency_table
from tvm_dynprune.nn import build_network, insert_gates, start_gates
from tvm_dynprune.nn.checkpoint import load_checkpoint
from tvm_dynprune.nn.export import export
from tvm_dynprune.nn.forced import forced_network
from tvm_dynprune.nn.gates import gates_of
from tvm_dynprune.nn.insert import GatedModel
from tvm_dynprune.nn.latency import LatencyTable
from tvm_dynprune.nn.loss import budget_loss, expected_latency_fraction, expected_mac_fraction
from tvm_dynprune.nn.macs import plan_macs
from tvm_dynprune.nn.networks import network_spec
from tvm_dynprune.nn.train import train
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.composite import as_composite, is_composite
from tvm_dynprune.passes.dataflow import Dataflow
from tvm_dynprune.soc import Cost, load_soc

SHAPE = (1, 28, 28)
# Costs of its own: how near to a budget so few groups come depends on what each of them takes.
COST = Cost(transform=11.0, weight=8.0, cached_weight=1.2, weight_transform=6.0, gather=16.0)
SOC = replace(load_soc("x86-avx512"), cost=COST)


def gated(name: str = "fashion_cnn", group_size: int = 16) -> GatedModel:
    torch.manual_seed(0)
    return insert_gates(build_network(name), group_size=group_size)


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return latency_table(gated(), SHAPE, SOC)


def compiled_costs(
    group_size: int, open_product: float, function: str
) -> dict[str, tuple[dict[str, float], list[str]]]:
    """What ChooseAlgorithm compares, by layer: costs by algorithm, and the roles of arguments."""
    model = forced_network(
        "fashion_cnn", torch.rand(2, *SHAPE), group_size=group_size, open_fraction=0.5
    )
    mod = pipeline.annotate(from_exported(export(model, torch.rand(2, *SHAPE))))
    layers = [str(f.attrs["layer"]) for _, f in mod.functions_items() if is_composite(f)]
    chosen = pipeline.choose(mod, SOC, open_products=dict.fromkeys(layers, open_product))
    functions, found = dict(chosen.functions_items()), {}
    for binding in Dataflow(chosen[function]).bindings:
        composite = as_composite(functions, binding.value)
        if composite is not None and composite.kind == "conv2d":
            costs = json.loads(str(composite.attribute("costs")))
            found[composite.layer] = (costs, list(composite.arguments))
    return found


def fraction(table: LatencyTable, layer: str, open_in: float, open_out: float) -> float:
    """Of one layer's open cost."""
    own = table.layers[layer]
    dense = min(whole for *_, whole in own.values())
    opened = {layer: (torch.tensor([open_in]), torch.tensor([open_out]))}
    return float(LatencyTable(dense, 0.0, {layer: own}).fraction(opened))


# Of groups of 8, vectors of 16 have to be gathered.
@pytest.mark.parametrize(("group_size", "product"), [(8, 0.09), (16, 0.5), (8, 0.5)])
def test_costs_are_those_that_the_compiler_compares(group_size: int, product: float) -> None:
    table = latency_table(gated(group_size=group_size), SHAPE, SOC)
    compared = compiled_costs(group_size, product, "main")
    for layer, algorithms in table.layers.items():
        costs, roles = compared[layer.replace(".", "_")]
        assert costs.keys() == algorithms.keys()
        gated_sides = [side for side in ("open_in", "open_out") if side in roles]
        each = product ** (1 / max(1, len(gated_sides)))
        for name, corners in algorithms.items():
            one = replace(table, dense=1.0, fixed=0.0, layers={layer: {name: corners}})
            shares = [torch.tensor([each], dtype=torch.float64)] * 2
            assert float(one.fraction({layer: (shares[0], shares[1])})) == pytest.approx(
                costs[name], rel=1e-6
            )


def test_the_whole_is_the_networks_dense_twin(table: LatencyTable) -> None:
    dense = compiled_costs(16, 0.5, "dense")
    assert table.dense == pytest.approx(sum(min(costs.values()) for costs, _ in dense.values()))
    open_ = {name: (torch.ones(1), torch.ones(1)) for name in table.layers}
    # Lists of channels and gates come on top.
    assert 1 < float(table.fraction(open_)) < 1.1


def test_transforms_are_a_part_that_macs_do_not_see(table: LatencyTable) -> None:
    # 64 to 64 channels at 14 x 14 pixels: Winograd's transforms fall with one side only.
    assert fraction(table, "features.10", 0.2, 0.2) > 1.5 * 0.2 * 0.2
    # To all of 64 channels from a fifth: half of what is left are transforms of the result.
    assert fraction(table, "features.10", 0.2, 1.0) > 1.1 * 0.2


def test_groups_that_are_no_vector_save_macs_and_hardly_time() -> None:
    by_vector, by_half = (latency_table(gated(group_size=g), SHAPE, SOC) for g in (16, 8))
    layer = "features.17"
    assert fraction(by_vector, layer, 1.0, 0.5) < 0.55
    assert fraction(by_half, layer, 1.0, 0.5) > 0.65


def test_depthwise_layers_cost_their_macs() -> None:
    model = insert_gates(Inverted(), group_size=4)
    plan, table = plan_macs(model, (3, 6, 6)), latency_table(model, (3, 6, 6), SOC)
    assert table.layers.keys() == plan.dense.keys()
    cost = plan.dense["depthwise.0"] / SOC.lanes
    assert table.layers["depthwise.0"] == {"depthwise": [0, cost, 0, cost]}
    masks = {name: torch.tensor([[1.0, 0.0]]).repeat_interleave(4, 1) for name in gates_of(model)}
    for shares in (plan.opened(masks)["depthwise.0"], plan.opened(masks)["project.0"][:1]):
        assert [share.item() for share in shares] == [0.5] * len(shares)


def test_skipped_blocks_cost_nothing() -> None:
    model = insert_gates(build_network("resnet20"), "block", 1)
    shape = network_spec("resnet20").input_shape
    plan, table = plan_macs(model, shape), latency_table(model, shape, SOC)
    masks = {n: torch.zeros(1, g.groups * g.group_size) for n, g in gates_of(model).items()}
    closed = float(table.fraction(plan.opened(masks)))
    masks = {name: torch.ones_like(mask) for name, mask in masks.items()}
    assert closed < 0.1
    assert float(table.fraction(plan.opened(masks))) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("mode", ["mixed", "closed"])
def test_going_down_the_gradient_closes_gates(table: LatencyTable, mode: str) -> None:
    model = gated().train()
    start_gates(model, SHAPE, steps=1, warm_up=0.0)
    if mode == "closed":
        for gate in gates_of(model).values():
            torch.nn.init.constant_(gate.conv.bias, -3.0)
    model(torch.rand(4, *SHAPE))
    plan = plan_macs(model, SHAPE)
    expected = expected_latency_fraction(model, plan, table)
    loss = budget_loss(model, plan, 0.1, table)
    assert loss.item() == pytest.approx((expected.item() - 0.1) ** 2, rel=1e-4)
    assert expected.item() > expected_mac_fraction(model, plan).item()
    expected.backward()
    for gate in gates_of(model).values():
        gradient = gate.conv.bias.grad
        assert gradient.isfinite().all()
        assert (gradient >= 0).all()
        if mode == "mixed":
            assert gradient.max() > 0


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "mnist", train=250)


def test_a_training_meets_its_latency_budget(
    table: LatencyTable, data: Path, tmp_path: Path
) -> None:
    quick = {
        "gate_learning_rate": 1.0,
        "epochs": 12,
        "warm_up": 0.05,
        "batch_size": 20,
        "shift": 0,
        "gate_weight": 20.0,
    }
    chosen = config(data, budget=0.5, soc=SOC.name, latency=table, **quick)
    train(chosen, tmp_path / "out")
    _, info = load_checkpoint(tmp_path / "out")
    last = info.history[-1]
    assert last["validation_latency_fraction"] == pytest.approx(0.5, abs=0.03)
    assert last["test_latency_fraction"] == pytest.approx(0.5, abs=0.06)
    assert 1 - last["validation_mac_cut"] < last["validation_latency_fraction"]
    assert info.training["soc"] == SOC.name

    train(chosen, tmp_path / "out", resume=True)  # the table is the one that was written
    other = replace(chosen, soc="host")
    with pytest.raises(CheckpointError, match="soc = x86-avx512, not host; resume with the same"):
        train(other, tmp_path / "out", resume=True)
    with pytest.raises(CheckpointError, match=r"latency = .* …, not None; resume") as caught:
        train(replace(chosen, latency=None), tmp_path / "out", resume=True)
    assert len(str(caught.value)) < 300
