# SPDX-License-Identifier: Apache-2.0
"""Data sets in their published formats, and what is said where they are not."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_dynprune.data import CIFAR10, DIGITS, FASHION, has_split, load_image, load_images
from tvm_dynprune.errors import DataError

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (7, 5, 4), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 1, 5, 2], dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An IDX file of unsigned bytes, written from its published description."""
    header = bytes([0, 0, 8, array.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def write_idx(folder: Path, *, split: str = "train", zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        path = folder / f"{split}-{name}-ubyte"
        if zipped:
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array)))
        else:
            path.write_bytes(idx(array))
    return folder


# IDX --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(("prefix", "split"), [("train", "train"), ("t10k", "test")])
def test_idx(tmp_path: Path, prefix: str, split: str, zipped: bool) -> None:
    write_idx(tmp_path / "mnist", split=prefix, zipped=zipped)
    data = load_images(tmp_path / "mnist", split)
    assert data.images.dtype == np.uint8
    assert np.array_equal(data.images, IMAGES[:, np.newaxis])
    assert data.labels.dtype == np.int64
    assert np.array_equal(data.labels, LABELS)
    assert data.classes == DIGITS
    assert len(data) == 7


def test_idx_of_fashion_mnist_is_known_by_its_directory(tmp_path: Path) -> None:
    assert load_images(write_idx(tmp_path / "Fashion-MNIST"), "train").classes == FASHION


def test_given_class_names_replace_the_known_ones(tmp_path: Path) -> None:
    names = [f"class {i}" for i in range(10)]
    assert load_images(write_idx(tmp_path), "train", classes=names).classes == tuple(names)


def test_idx_without_labels(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte"):
        load_images(tmp_path, "train")


def test_idx_with_another_number_of_labels(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:5]))
    with pytest.raises(DataError, match="5 labels for 7 images"):
        load_images(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"<html>no such page, but long enough</html>", "not an IDX file"),
        (idx(LABELS), "not an IDX file"),
        (idx(IMAGES)[:-1], "139 bytes of data, its header says 140"),
        (idx(IMAGES) + b"x", "141 bytes of data, its header says 140"),
    ],
)
def test_damaged_idx(tmp_path: Path, content: bytes, message: str) -> None:
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte: .*{message}"):
        load_images(tmp_path, "train")


@pytest.mark.parametrize("keep", [0, 5, 30, -1])
def test_damaged_gzip(tmp_path: Path, keep: int) -> None:
    write_idx(tmp_path, zipped=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        load_images(tmp_path, "train")


def test_gzip_that_is_none(tmp_path: Path) -> None:
    write_idx(tmp_path, zipped=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(idx(IMAGES))
    with pytest.raises(DataError, match="damaged gzip"):
        load_images(tmp_path, "train")


def test_empty_split(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES[:0]))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:0]))
    with pytest.raises(DataError, match="train split has no images"):
        load_images(tmp_path, "train")


def test_label_without_a_class(tmp_path: Path) -> None:
    write_idx(tmp_path)
    with pytest.raises(DataError, match=r"label 9 .*only 3 classes"):
        load_images(tmp_path, "train", classes=["a", "b", "c"])


# CIFAR-10 ---------------------------------------------------------------------------------------

CIFAR_IMAGES = RANDOM.integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)


def write_cifar(folder: Path) -> Path:
    """Two images in each of the six batches; the label is the image's number, up to 9."""
    folder.mkdir(parents=True)
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    for i, name in enumerate(names):
        pairs = [(2 * i + j) % 10 for j in range(2)]
        records = [
            bytes([label]) + CIFAR_IMAGES[2 * i + j].tobytes() for j, label in enumerate(pairs)
        ]
        (folder / name).write_bytes(b"".join(records))
    return folder


def test_cifar(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "cifar-10-batches-bin")
    for directory in (folder, tmp_path):
        train, test = load_images(directory, "train"), load_images(directory, "test")
        assert np.array_equal(train.images, CIFAR_IMAGES[:10])
        assert train.labels.tolist() == list(range(10))
        assert np.array_equal(test.images, CIFAR_IMAGES[10:])
        assert test.labels.tolist() == [0, 1]
        assert train.classes == test.classes == CIFAR10


def test_cifar_names_its_classes(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "cifar-10-batches-bin")
    (folder / "batches.meta.txt").write_text("\n".join("abcdefghij") + "\n\n", encoding="utf-8")
    assert load_images(folder, "test").classes == tuple("abcdefghij")


def test_cifar_with_a_missing_batch(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "cifar")
    (folder / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin: missing"):
        load_images(folder, "train")


@pytest.mark.parametrize("keep", [0, 1, 3073 + 17])
def test_cifar_with_a_truncated_batch(tmp_path: Path, keep: int) -> None:
    folder = write_cifar(tmp_path / "cifar")
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"data_batch_2\.bin: {keep} bytes .*3073-byte records"):
        load_images(folder, "train")


# A folder per class -----------------------------------------------------------------------------


def write_png(path: Path, *, mode: str = "RGB", size: tuple[int, int] = (4, 5)) -> Path:
    """An image of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = RANDOM.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels.squeeze()).save(path)
    return path


def write_folders(root: Path) -> Path:
    for name, count in (("cat", 2), ("ant", 1), ("bee", 3)):
        for i in range(count):
            write_png(root / name / f"{i}.png")
        (root / name / "notes.txt").write_text("no image")
    (root / "empty").mkdir()
    return root


def test_folders(tmp_path: Path) -> None:
    write_folders(tmp_path / "train")
    write_png(tmp_path / "test" / "bee" / "x.PNG")
    train = load_images(tmp_path, "train")
    assert train.classes == ("ant", "bee", "cat")
    assert train.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert train.images.shape == (6, 3, 5, 4)
    with Image.open(tmp_path / "train" / "ant" / "0.png") as image:
        assert np.array_equal(train.images[0], np.array(image).transpose(2, 0, 1))
    test = load_images(tmp_path, "test", classes=["bee"])
    assert (test.labels.tolist(), test.classes) == ([0], ("bee",))


def test_flat_folders_serve_both_splits(tmp_path: Path) -> None:
    write_folders(tmp_path)
    first, second = load_images(tmp_path, "train"), load_images(tmp_path, "test")
    assert np.array_equal(first.images, second.images)
    assert not has_split(tmp_path, "test")


def test_has_split(tmp_path: Path) -> None:
    write_idx(tmp_path / "idx")
    assert has_split(tmp_path / "idx", "train")
    assert not has_split(tmp_path / "idx", "test")
    write_folders(tmp_path / "folders" / "test")
    assert has_split(tmp_path / "folders", "test")
    assert has_split(write_cifar(tmp_path / "cifar"), "test")


def test_class_names_give_the_folders_their_labels(tmp_path: Path) -> None:
    write_folders(tmp_path)
    data = load_images(tmp_path, "test", classes=["cat", "ant", "bee"])
    assert data.labels.tolist() == [0, 0, 1, 2, 2, 2]
    with pytest.raises(DataError, match=r"no folder for class 'dog'.*ant, bee, cat"):
        load_images(tmp_path, "test", classes=["cat", "dog"])


def test_classes_without_any_image(tmp_path: Path) -> None:
    write_folders(tmp_path)
    with pytest.raises(DataError, match="no images"):
        load_images(tmp_path, "test", classes=["empty"])


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        ("RGB", (6, 5), r"image is 6x5 RGB, the ones before it are 4x5 RGB"),
        ("L", (4, 5), r"image is 4x5 grey, the ones before it are 4x5 RGB"),
        ("RGBA", (4, 5), r"image mode is RGBA"),
    ],
)
def test_images_that_differ(tmp_path: Path, mode: str, size: tuple[int, int], message: str) -> None:
    write_folders(tmp_path)
    write_png(tmp_path / "cat" / "odd.png", mode=mode, size=size)
    with pytest.raises(DataError, match=rf"odd\.png: {message}"):
        load_images(tmp_path, "train")


# Nothing there, single images -------------------------------------------------------------------


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such directory"):
        load_images(tmp_path / "nowhere", "train")


def test_directory_without_data(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    with pytest.raises(DataError) as caught:
        load_images(tmp_path, "test")
    text = str(caught.value)
    assert "\n" not in text
    for looked_for in ("t10k-images-idx3-ubyte", "test_batch.bin", "test/<class>/*.png"):
        assert looked_for in text


def test_split_that_is_missing(tmp_path: Path) -> None:
    write_folders(tmp_path / "train")
    with pytest.raises(DataError, match="no test images"):
        load_images(tmp_path, "test")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_load_image(tmp_path: Path, mode: str, channels: int) -> None:
    path = write_png(tmp_path / "a.png", mode=mode)
    pixels = load_image(path, (channels, 5, 4))
    assert (pixels.shape, pixels.dtype) == ((1, channels, 5, 4), np.uint8)
    with Image.open(path) as image:
        wanted = np.array(image).reshape(5, 4, channels)
    assert np.array_equal(pixels[0].transpose(1, 2, 0), wanted)


@pytest.mark.parametrize(
    ("mode", "size", "message"),
    [
        ("RGB", (5, 4), "image is 5x4 RGB, the network takes 4x5 RGB"),
        ("L", (4, 5), "image is 4x5 grey, the network takes 4x5 RGB"),
        ("RGBA", (4, 5), r"image mode is RGBA; L \(grey\) and RGB"),
    ],
)
def test_load_image_of_another_size_or_mode(
    tmp_path: Path, mode: str, size: tuple[int, int], message: str
) -> None:
    path = write_png(tmp_path / "a.png", mode=mode, size=size)
    with pytest.raises(DataError, match=rf"a\.png: {message}"):
        load_image(path, (3, 5, 4))


def test_load_image_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png: no such image file"):
        load_image(tmp_path / "a.png", (3, 5, 4))
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(DataError, match=r"a\.png: not an image"):
        load_image(tmp_path / "a.png", (3, 5, 4))
    with pytest.raises(DataError, match="not an image"):
        load_image(tmp_path, (3, 5, 4))
    whole = write_png(tmp_path / "b.png", size=(64, 64)).read_bytes()
    (tmp_path / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"b\.png: not an image"):
        load_image(tmp_path / "b.png", (3, 64, 64))
