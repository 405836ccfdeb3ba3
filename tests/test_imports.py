# SPDX-License-Identifier: Apache-2.0
"""Who may import whom: the layers of the package stay layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tvm_dynprune"
FREE = {"errors", "files", "data", "load_tvm", "progress"}
EVERYTHING = {path.stem for path in PACKAGE.iterdir()}

# What each part may import of the package, besides what is free to all.
INSIDE = {
    "__init__": EVERYTHING,
    "__main__": {"cli"},
    "cli": EVERYTHING,
    "cli_device": {"device", "runtime", "soc"},
    "cli_measure": EVERYTHING - {"cli"},
    "cli_options": {"bench", "passes", "tables", "tune"},
    "cli_soc": {"cli_device", "runtime", "soc"},
    "cli_train": {"cli_options", "latency", "nn", "soc"},
    "cli_tune": EVERYTHING,
    "bench": EVERYTHING - {"cli", "demo"},
    "demo": EVERYTHING - {"cli"},
    "demo_cifar10": EVERYTHING - {"cli"},
    "compiler": {"device", "doctor", "frontend", "kernels", "passes", "runtime", "soc"},
    "device": {"soc"},
    "doctor": {"device", "soc"},
    "data": set(),
    "errors": set(),
    "files": set(),
    "frontend": {"nn"},
    "kernels": set(),
    "load_tvm": set(),
    "latency": {"frontend", "nn", "passes", "soc"},
    "nn": set(),
    "passes": {"kernels", "soc"},
    "progress": set(),
    "report": set(),
    "runtime": {"soc"},
    "soc": set(),
    "tables": set(),
    "tune": {"device", "kernels", "passes", "runtime", "soc"},
}
# Single modules that hold nothing but what both sides must agree on.
ALSO = {
    ("frontend", "passes.dataflow"),  # reading a dataflow block
    ("nn", "frontend.names"),  # the keys under which files keep the class names
}
# What each part may import from outside, besides the standard library.
OUTSIDE = {
    "__init__": set(),
    "__main__": set(),
    "bench": {"numpy", "torch", "tvm"},
    "cli": {"typer"},
    "cli_device": {"typer"},
    "cli_measure": {"typer"},
    "cli_options": {"rich", "typer"},
    "cli_soc": {"typer"},
    "cli_train": {"typer"},
    "cli_tune": {"numpy", "rich", "typer"},
    "compiler": {"numpy", "tvm"},
    "data": {"PIL", "numpy"},
    "demo": {"numpy"},
    "demo_cifar10": set(),
    "device": {"tvm_ffi"},
    "doctor": set(),
    "errors": set(),
    "files": set(),
    "frontend": {"numpy", "onnx", "torch", "tvm"},
    "kernels": {"numpy", "tvm", "tvm_ffi"},
    "load_tvm": {"tvm"},
    "latency": {"torch", "tvm"},
    "nn": {"numpy", "rich", "safetensors", "torch"},
    "passes": {"numpy", "tvm", "tvm_ffi"},
    "progress": {"rich"},
    "report": {"matplotlib", "numpy", "tomli"},
    "runtime": {"numpy", "tvm", "tvm_ffi"},
    "soc": {"tomli", "tvm"},
    "tables": {"numpy", "rich"},
    "tune": {"numpy", "scipy", "tvm", "xgboost"},
}


def part_of(path: Path) -> str:
    """ "passes" for ``passes/gates.py``, "cli" for ``cli.py``."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            modules = {node.module}
            if node.module in ("tvm_dynprune", *(f"tvm_dynprune.{p}" for p in INSIDE)):
                modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= modules
    return found


def test_every_part_has_its_rules():
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")}
    assert parts <= set(INSIDE)
    assert parts <= set(OUTSIDE)


def forbidden(path: Path) -> list[str]:
    """The imports of a file that the tables above do not allow."""
    part, wrong = part_of(path), []
    for module in imported(path):
        top, *rest = module.split(".")
        if top != "tvm_dynprune":
            if top not in sys.stdlib_module_names and top not in OUTSIDE[part]:
                wrong.append(module)
        elif rest and rest[0] not in {part} | FREE | INSIDE[part]:
            if not any((part, ".".join(rest[:n])) in ALSO for n in (1, 2)):
                wrong.append(module)
    return wrong


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_stay_within_the_layers(path):
    assert forbidden(path) == []


@pytest.mark.parametrize(
    ("place", "source", "wrong"),
    [
        ("kernels/new.py", "from tvm_dynprune.passes.gates import Gate", True),
        ("kernels/new.py", "def f():\n    import torch", True),
        ("report/new.py", "import tvm.relax", True),
        ("runtime/new.py", "from tvm_dynprune import passes", True),
        ("nn/new.py", "from tvm_dynprune.frontend import from_onnx", True),
        ("passes/new.py", "from tvm_dynprune.kernels.direct_conv2d import direct_conv2d", False),
        ("report/new.py", "import json", False),
    ],
)
def test_the_rules_find_what_they_forbid(place, source, wrong, tmp_path, monkeypatch):
    path = tmp_path / place
    path.parent.mkdir()
    path.write_text(source)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    assert bool(forbidden(path)) is wrong


def python(code: str) -> subprocess.CompletedProcess:
    """Run code in a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["", ".runtime", ".cli", ".report", ".doctor"])
def test_does_not_load_torch(module):
    done = python(f"import tvm_dynprune{module}, sys; assert 'torch' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["compiler", "frontend.onnx", "passes.pipeline", "bench"])
def test_works_where_torch_is_not_installed(module):
    # TVM itself loads torch where it finds it; this makes it find none.
    done = python(f"import sys; sys.modules['torch'] = None; import tvm_dynprune.{module}")
    assert done.returncode == 0, done.stderr


def test_torch_can_be_loaded_after_the_runtime():
    done = python("import tvm_dynprune.runtime, torch; assert torch.ones(2).sum() == 2")
    assert done.returncode == 0, done.stderr


def test_what_only_runs_loads_no_compiler_and_leaves_no_trace():
    done = python(
        "from tvm_dynprune.load_tvm import load_tvm; load_tvm(compiler=False)\n"
        "import tvm_dynprune.runtime, tvm.base, os\n"
        "assert 'tvm_compiler' not in tvm.base._LOADED_LIBS\n"
        "assert 'TVM_USE_RUNTIME_LIB' not in os.environ"
    )
    assert done.returncode == 0, done.stderr
