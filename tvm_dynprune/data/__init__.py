# SPDX-License-Identifier: Apache-2.0
"""Labelled images from the data sets' own published files; NumPy and Pillow only."""

from tvm_dynprune.data.cifar import CIFAR10 as CIFAR10
from tvm_dynprune.data.idx import DIGITS as DIGITS, FASHION as FASHION
from tvm_dynprune.data.image_files import load_image as load_image
from tvm_dynprune.data.labelled import LabelledImages as LabelledImages, Split as Split
from tvm_dynprune.data.load import (
    has_split as has_split,
    hold_out as hold_out,
    load_images as load_images,
)
