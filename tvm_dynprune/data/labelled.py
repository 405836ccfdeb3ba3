# SPDX-License-Identifier: Apache-2.0
"""Images with their labels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "test", "validation"]
UInt8Array = npt.NDArray[np.uint8]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledImages:
    """Images with their labels.

    Attributes
    ----------
    images
        uint8, (N, C, H, W), 0 to 255.
    labels
        int64, (N,), each an index into `classes`.
    classes
        Class names in label order.
    """

    images: UInt8Array
    labels: Int64Array
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)
