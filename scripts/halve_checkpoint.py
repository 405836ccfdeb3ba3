# SPDX-License-Identifier: Apache-2.0
"""Copy a checkpoint with its weights in half precision, without what --resume needs.

Usage: python scripts/halve_checkpoint.py CHECKPOINT OUT
"""

import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from tvm_dynprune.nn.checkpoint import INFO, WEIGHTS, load_checkpoint


def main(source: Path, out: Path) -> None:
    """Write `out`, which `train --start` and `export` read as any checkpoint."""
    load_checkpoint(source)
    out.mkdir(parents=True, exist_ok=True)
    weights = load_file(source / WEIGHTS)
    halved = {name: v.half() if v.is_floating_point() else v for name, v in weights.items()}
    save_file(halved, out / WEIGHTS)
    info = json.loads((source / INFO).read_text(encoding="utf-8"))
    info["training"]["data"] = "DATA_DIR"
    (out / INFO).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
