# SPDX-License-Identifier: Apache-2.0
"""Where exported files keep the class names."""

CLASSES_KEY = "tvm_dynprune.classes"
"""Key of an ONNX file's metadata."""
CLASSES_FILE = "tvm_dynprune_classes.json"
"""Extra file inside a ``.pt2``."""
