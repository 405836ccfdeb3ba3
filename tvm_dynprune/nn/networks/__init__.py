# SPDX-License-Identifier: Apache-2.0
"""The project's networks by name; all take float32 images (N, C, H, W) in [0, 1]."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import nn

from tvm_dynprune.errors import ModelError
from tvm_dynprune.nn.networks.compact import CompactVGG
from tvm_dynprune.nn.networks.fashion import FashionCNN
from tvm_dynprune.nn.networks.mobilenet import MobileNetV1, MobileNetV2
from tvm_dynprune.nn.networks.resnet import CifarResNet, ResNet18
from tvm_dynprune.nn.networks.squeezenet import SqueezeNet
from tvm_dynprune.nn.networks.vgg import VGG

__all__ = ["NETWORKS", "NetworkSpec", "build_network", "network_spec"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
FASHION_STATISTICS: Statistics = ((0.2860,), (0.3530,))
CIFAR10_STATISTICS: Statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGENET_STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class NetworkSpec:
    """What is known of a network before it is built.

    Attributes
    ----------
    build
        ``build(classes=…, mean=…, std=…)`` makes it, with random weights.
    input_shape
        Channels, height and width of its images.
    classes
        Classes it has unless told otherwise.
    mean, std
        Per channel, of the images in [0, 1] that it is usually trained on.
    """

    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


_CIFAR = ((3, 32, 32), 10, *CIFAR10_STATISTICS)
_IMAGENET = ((3, 224, 224), 1000, *IMAGENET_STATISTICS)

NETWORKS: dict[str, NetworkSpec] = {
    "fashion_cnn": NetworkSpec(FashionCNN, (1, 28, 28), 10, *FASHION_STATISTICS),
    "compact_vgg": NetworkSpec(CompactVGG, *_CIFAR),
    "vgg16_bn": NetworkSpec(VGG, *_CIFAR),
    "resnet20": NetworkSpec(partial(CifarResNet, 3), *_CIFAR),
    "resnet56": NetworkSpec(partial(CifarResNet, 9), *_CIFAR),
    "resnet18": NetworkSpec(ResNet18, *_IMAGENET),
    "squeezenet1_1": NetworkSpec(SqueezeNet, *_IMAGENET),
    "mobilenet_v1": NetworkSpec(MobileNetV1, *_IMAGENET),
    "mobilenet_v1_025": NetworkSpec(
        partial(MobileNetV1, width=0.25), (3, 96, 96), 1000, *IMAGENET_STATISTICS
    ),
    "mobilenet_v2": NetworkSpec(MobileNetV2, *_IMAGENET),
}


def network_spec(name: str) -> NetworkSpec:
    """Look a network up.

    Raises
    ------
    ModelError
        There is no network of that name; the message lists the known ones.
    """
    if name not in NETWORKS:
        raise ModelError(f"no network {name!r}: choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]


def build_network(
    name: str,
    *,
    classes: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> nn.Module:
    """Build a network with random weights (`torch.manual_seed` decides which).

    Parameters
    ----------
    name
        A key of `NETWORKS`.
    classes
        Number of classes; None takes the network's usual one.
    mean, std
        Per channel, for images in [0, 1]; None takes those of the network's usual data set.

    Raises
    ------
    ModelError
        Unknown name.
    ValueError
        `mean` or `std` has not one number per input channel.
    """
    spec = network_spec(name)
    mean, std = mean or spec.mean, std or spec.std
    if len(mean) != spec.input_shape[0] or len(std) != spec.input_shape[0]:
        raise ValueError(f"{name} takes {spec.input_shape[0]} channels: one mean and std for each")
    return spec.build(classes=classes or spec.classes, mean=mean, std=std)
