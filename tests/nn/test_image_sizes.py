# SPDX-License-Identifier: Apache-2.0
"""Images of any size: a folder per class is trained, kept and exported at the size it has."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.nn.util import config
from tvm_dynprune.cli import main
from tvm_dynprune.errors import CheckpointError, DataError
from tvm_dynprune.nn.checkpoint import INFO, load_checkpoint, read_info
from tvm_dynprune.nn.macs import plan_macs
from tvm_dynprune.nn.train import train


def write_folders(folder: Path, *, size: tuple[int, int], mode: str = "RGB") -> Path:
    """Eight images of each of two classes: one dark, one bright."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name, low in (("dark", 0), ("light", 128)):
            (folder / split / name).mkdir(parents=True)
            for i in range(8 if split == "train" else 1):
                shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
                pixels = random.integers(low, low + 128, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


def test_a_folder_of_48x40(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_folders(tmp_path / "data", size=(48, 40))
    out, exported = tmp_path / "out", tmp_path / "model.pt2"
    chosen = config(data, network="resnet20", group_size=8, epochs=1, batch_size=4)
    train(chosen, out)
    train(chosen, out, resume=True)
    model, info = load_checkpoint(out)
    assert info.classes == ["dark", "light"]
    assert info.shape == (3, 40, 48)
    usual = plan_macs(model, (3, 32, 32)).dense_total
    assert plan_macs(model, info.shape).dense_total == pytest.approx(usual * 40 * 48 / 32**2, 1e-3)
    assert info.history[0]["validation_mac_cut"] < 1

    command = ["tvm-dynprune", "export", str(out), "--out", str(exported)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    images = torch.rand(3, 3, 40, 48)
    program = torch.export.load(exported).module()
    torch.testing.assert_close(program(images), model(images))


def test_a_network_for_one_size_only(tmp_path: Path) -> None:
    data = write_folders(tmp_path / "data", size=(64, 70))
    with pytest.raises(DataError, match=r"64x70 do not fit vgg16_bn, which is for 32x32") as caught:
        train(config(data, network="vgg16_bn", batch_size=4), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_images_too_small_to_shift(tmp_path: Path) -> None:
    data = write_folders(tmp_path / "data", size=(9, 2))
    with pytest.raises(DataError, match="images of 9x2 are too small to shift by 2 pixels"):
        train(config(data, network="resnet20", group_size=8, batch_size=4), tmp_path / "out")


def test_resumed_with_images_of_another_size(tmp_path: Path) -> None:
    chosen = {"network": "fashion_cnn", "epochs": 1, "batch_size": 4}
    first = write_folders(tmp_path / "first", size=(20, 20), mode="L")
    second = write_folders(tmp_path / "second", size=(24, 20), mode="L")
    train(config(first, **chosen), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"shape \(1, 20, 20\), not \(1, 20, 24\)"):
        train(config(second, **chosen), tmp_path / "out", resume=True)

    # Checkpoints of before the shape was kept are of the network's usual one.
    saved = json.loads((tmp_path / "out" / INFO).read_text())
    del saved["input_shape"]
    (tmp_path / "out" / INFO).write_text(json.dumps(saved))
    assert read_info(tmp_path / "out").shape == (1, 28, 28)


@pytest.mark.parametrize("shape", [[3, 28, 28], [1, 28], [1, 28, "28"], [1, 0, 28], 28, "1x28x28"])
def test_a_shape_that_is_none(tmp_path: Path, shape: object) -> None:
    data = write_folders(tmp_path / "data", size=(20, 20), mode="L")
    train(config(data, epochs=1, batch_size=4), tmp_path / "out")
    saved = json.loads((tmp_path / "out" / INFO).read_text())
    (tmp_path / "out" / INFO).write_text(json.dumps(saved | {"input_shape": shape}))
    with pytest.raises(CheckpointError, match="damaged .input_shape"):
        load_checkpoint(tmp_path / "out")
