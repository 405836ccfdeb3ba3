# SPDX-License-Identifier: Apache-2.0
"""Files and programs that cannot be used: one line that says what, where and what to do."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.frontend.networks import Dgnet
from tvm_dynprune.errors import ModelError
from tvm_dynprune.frontend import from_exported, from_onnx
from tvm_dynprune.frontend.exported import load_exported
from tvm_dynprune.frontend.layers import layer_name
from tvm_dynprune.frontend.model import load_model
from tvm_dynprune.frontend.onnx import load_onnx

IMAGES = torch.zeros(2, 3, 9, 9)
BATCH = torch.export.Dim("batch")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5)).eval()


def broken() -> nn.Module:
    model = small()
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    return model


def write_onnx(path: Path, model: nn.Module, **options) -> Path:
    torch.onnx.export(model, (IMAGES,), path, dynamo=True, verbose=False, **options)
    return path


def write_exported(path: Path, model: nn.Module, **options) -> Path:
    torch.export.save(torch.export.export(model, (IMAGES,), **options), path)
    return path


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("content", [b"", b"not a model", b"PK\x03\x04 neither", bytes(1000)])
@pytest.mark.parametrize(("load", "suffix"), [(load_onnx, "onnx"), (load_exported, "pt2")])
def test_a_file_that_is_no_model_is_named(load, suffix, content, tmp_path):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not a") as error:
        load(path)
    assert str(path) in one_line(error)


@pytest.mark.parametrize(("load", "suffix"), [(load_onnx, "onnx"), (load_exported, "pt2")])
def test_a_file_that_is_missing_is_named(load, suffix, tmp_path):
    path = tmp_path / f"missing.{suffix}"
    with pytest.raises(ModelError) as error:
        load(path)
    assert str(path) in one_line(error)


def test_a_checkpoint_is_no_exported_program(tmp_path):
    path = tmp_path / "weights.pt2"
    torch.save(small().state_dict(), path)
    with pytest.raises(ModelError, match=r"not a torch.export file"):
        load_exported(path)


def test_nan_weights_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"weight .*0_weight.* holds NaN") as error:
        from_exported(torch.export.export(broken(), (IMAGES,)))
    one_line(error)
    with pytest.raises(ModelError, match=r"weight .*0.weight.* holds NaN") as error:
        from_onnx(write_onnx(tmp_path / "nan.onnx", broken()))
    one_line(error)


def test_an_operator_that_tvm_does_not_know_is_named(tmp_path):
    node = onnx.helper.make_node("Mystery", ["x"], ["y"], domain="somewhere.else")
    x, y = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4, 4])
        for name in "xy"
    )
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", [x], [y])), tmp_path / "m.onnx"
    )
    with pytest.raises(ModelError, match="Mystery") as error:
        from_onnx(tmp_path / "m.onnx")
    one_line(error)


@pytest.mark.parametrize("batch", [None, 2])
def test_a_fixed_batch_is_kept(batch, tmp_path):
    mod = load_onnx(write_onnx(tmp_path / "m.onnx", small()), batch=batch)[0]
    assert [int(size) for size in mod["main"].params[0].ty.shape] == [2, 3, 9, 9]
    mod = load_exported(write_exported(tmp_path / "m.pt2", small()), batch=batch)[0]
    assert [int(size) for size in mod["main"].params[0].ty.shape] == [2, 3, 9, 9]


def test_another_batch_than_the_fixed_one_names_both(tmp_path):
    for load, path in (
        (load_onnx, write_onnx(tmp_path / "m.onnx", small())),
        (load_exported, write_exported(tmp_path / "m.pt2", small())),
    ):
        with pytest.raises(ModelError, match=r"fixed at 2, 3 was asked for") as error:
            load(path, batch=3)
        one_line(error)


@pytest.mark.parametrize(("batch", "size"), [(None, 1), (3, 3)])
def test_an_open_batch_gets_its_size(batch, size, tmp_path):
    shapes = ({0: BATCH},)
    onnx_file = write_onnx(tmp_path / "m.onnx", small(), dynamic_shapes=shapes)
    exported = write_exported(tmp_path / "m.pt2", small(), dynamic_shapes=shapes)
    for load, path in ((load_onnx, onnx_file), (load_exported, exported)):
        main = load(path, batch=batch)[0]["main"]
        assert [int(s) for s in main.params[0].ty.shape] == [size, 3, 9, 9]
        assert [int(s) for s in main.ret_ty.shape] == [size, 5]


def test_an_input_without_a_size_is_refused(tmp_path):
    path = write_onnx(
        tmp_path / "m.onnx", small()[:2].eval(), dynamic_shapes=({2: torch.export.Dim("h")},)
    )
    with pytest.raises(ModelError, match="has no fixed size") as error:
        from_onnx(path)
    one_line(error)


class Sum(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.relu() + y


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (
            nn.ReLU().eval(),
            (IMAGES.double(),),
            "its input is float64; export the model with a float32",
        ),
        (nn.Flatten().eval(), (IMAGES.to(torch.uint8),), "its input is uint8; export the model"),
        (Sum().eval(), (IMAGES, IMAGES), "its inputs are x, y; a network with one image is needed"),
    ],
)
def test_other_inputs_than_one_image_are_named(model, inputs, message, suffix, tmp_path):
    path = tmp_path / f"m{suffix}"
    if suffix == ".onnx":
        torch.onnx.export(model, inputs, path, dynamo=True, verbose=False)
    else:
        torch.export.save(torch.export.export(model, inputs), path)
    with pytest.raises(ModelError, match=message) as error:
        load_model(path)
    one_line(error)


def test_the_reference_is_the_models_own_answer(tmp_path):
    x = np.random.default_rng(0).standard_normal((2, 3, 9, 9)).astype("float32")
    with torch.no_grad():
        expected = small()(torch.from_numpy(x)).numpy()
    for load, path in (
        (load_onnx, write_onnx(tmp_path / "m.onnx", small())),
        (load_exported, write_exported(tmp_path / "m.pt2", small())),
    ):
        _, reference, classes = load(path)
        assert classes == ()
        np.testing.assert_allclose(reference(x)[0], expected, rtol=1e-4, atol=1e-5)


def test_layers_are_named_after_their_weights(tmp_path):
    def names(mod):
        bindings = [b for block in mod["main"].body.blocks for b in block.bindings]
        return {binding.var.name for binding in bindings}

    convolutions = {"stem_0", "body", "tail"}
    program = torch.export.export(Dgnet().eval(), (IMAGES,))
    assert names(from_exported(program)) >= convolutions | {"saliency", "head"}
    assert names(from_onnx(write_onnx(tmp_path / "m.onnx", Dgnet().eval()))) >= convolutions


@pytest.mark.parametrize(
    ("weight", "layer"),
    [
        ("p_layer1_0_conv1_weight", "layer1_0_conv1"),
        ("features.3.weight", "features_3"),
        ("p.weight", "p"),
        ("b_kernel", "kernel"),
        ("weight", "weight"),
        ("::", "layer"),
    ],
)
def test_layer_names(weight, layer):
    assert layer_name(weight) == layer


def test_parameters_become_constants(tmp_path):
    for mod in (
        from_exported(torch.export.export(small(), (IMAGES,))),
        from_onnx(write_onnx(tmp_path / "m.onnx", small())),
    ):
        assert len(mod["main"].params) == 1
