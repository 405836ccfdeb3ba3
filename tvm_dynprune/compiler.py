# SPDX-License-Identifier: Apache-2.0
"""From a model to an artifact: optimise, build, compare with the reference, write."""

import json
import logging
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from tvm_dynprune.device.linker import link_library
from tvm_dynprune.doctor import find_compiler
from tvm_dynprune.errors import LogError, NotLoweredError, ToolError, UnusableGateError
from tvm_dynprune.files import refuse_existing, sha256, write_folder_atomic
from tvm_dynprune.frontend.model import Model
from tvm_dynprune.kernels.tuned import TunedKernel
from tvm_dynprune.passes import pipeline
from tvm_dynprune.passes.add_dense_twin import TWIN
from tvm_dynprune.passes.choose_algorithm import choices_of
from tvm_dynprune.passes.composite import is_composite
from tvm_dynprune.passes.dataflow import Dataflow, shape_of
from tvm_dynprune.passes.expose_gates import gate_infos
from tvm_dynprune.passes.gates import find_gates
from tvm_dynprune.passes.instruments import Timer
from tvm_dynprune.passes.layer_macs import layer_macs
from tvm_dynprune.passes.lower_kernels import KERNEL_CALLS
from tvm_dynprune.runtime.artifact import (
    FUNCTIONS,
    REFERENCE,
    Artifact,
    Gate,
    Manifest,
    versions,
    write_manifest,
)
from tvm_dynprune.runtime.calibration import Calibration
from tvm_dynprune.runtime.session import Session
from tvm_dynprune.runtime.weights import write_weights
from tvm_dynprune.soc import Soc, in_precision, load_soc, missing_here, required_features

logger = logging.getLogger(__name__)

REFERENCE_IMAGES = 4
MISMATCH = 1e-3  # of the output's scale: beyond rounding, something is wrong


def compile(
    model: Model,
    soc: Soc,
    out: str | Path,
    *,
    lowering: str = "auto",
    precision: str = "float32",
    calibration: np.ndarray | None = None,
    tuned: Mapping[str, TunedKernel] | None = None,
    strict: bool = False,
    force: bool = False,
    dump_ir: Path | None = None,
    timer: Timer | None = None,
) -> Artifact:
    """Compile a model into an artifact.

    Parameters
    ----------
    model
        What `load_model` returned.
    soc
        Where it will run.
    out
        Folder to write.
    lowering
        "auto", "dense", "if" or "indexed"; see `ChooseLowering`.
    precision
        "float32", or "float16" for SoCs that compute in it: what `UseFloat16` makes of it.
    calibration
        Images (N, C, H, W) float32 on which "auto" measures how much each layer's gates leave open.
    tuned
        What `tune.open_cost.read_tuned` found in a log.
    strict
        A multiplication that looks like a gate and cannot be used is an error.
    force
        Replace `out`.
    dump_ir, timer
        See `pipeline.pass_context`.

    Raises
    ------
    LogError
        `tuned` has none of the network's kernels.
    SocError
        The SoC does not compute in that precision, or there is no such.
    UnusableGateError
        Under `strict`; the message names the layer and the reason.
    OutputExistsError
        `out` exists and `force` is false.
    ToolError
        There is no compiler or linker to link the library with.
    NotLoweredError
        The compiled network does not compute what the reference does. For a SoC of another kind
        than this machine it is compared on the device: `Session.self_test`.
    """
    out = Path(out)
    refuse_existing(out, force=force)
    linker = _linker(soc)
    layout = in_precision(soc, precision)
    with pipeline.pass_context(dump_ir, timer):
        simplified = tvm.transform.Sequential(pipeline.simplify_passes())(model.mod)
        unused = _unused_gates(simplified, strict=strict)
        annotated, chosen, _ = _choose(model, simplified, layout, lowering, calibration, tuned)
        lowered = pipeline.lower(chosen, layout)
        executable, weights = pipeline.build_apart(lowered, soc, precision)
    manifest = replace(
        _manifest(model, annotated, soc, lowering, unused),
        precision=precision,
        choices=[asdict(c) for c in choices_of(chosen["main"], dict(chosen.functions_items()))],
        kernels={name: json.loads(lowered[name].attrs[KERNEL_CALLS]) for name in FUNCTIONS},
    )
    with write_folder_atomic(out, force=force) as folder:
        manifest = replace(manifest, **_export(executable, weights, folder, linker))
        _write_reference(folder, model, manifest)
        if not missing_here(manifest.target, manifest.features):
            manifest = _compared(folder, manifest)
        write_manifest(folder, manifest)
    return Artifact.load(out)


def _unused_gates(mod: tvm.IRModule, *, strict: bool) -> dict[str, str]:
    """Layer → why a multiplication that looks like its gate closes nothing."""
    gates = find_gates(Dataflow(mod["main"]))
    unused = {gate.layer: gate.reason for gate in gates if gate.reason is not None}
    for layer, reason in unused.items():
        if strict:
            raise UnusableGateError(f"gate at {layer}: {reason} (an error because of --strict)")
        logger.warning("gate at %s is not used: %s", layer, reason)
    if not any(gate.reason is None for gate in gates):
        logger.warning("no gates found: the network is compiled dense")
    return unused


def _linker(soc: Soc) -> Callable[..., None] | None:
    """What links libraries for `soc`; None stands for this machine's own compiler."""
    triple = soc.target["mtriple"]
    here = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if not triple.startswith(here):
        if triple.startswith("aarch64"):
            return link_library(triple)
        raise ToolError(f"SoC {soc.name}: code for {triple} is not linked on {here}; compile there")
    if find_compiler() is None:
        raise ToolError("no C++ compiler to link the library with; `tvm-dynprune doctor` says more")
    return None


def choose_kernels(
    model: Model, soc: Soc, calibration: np.ndarray | None
) -> tuple[tvm.IRModule, Calibration | None]:
    """The network as `compile` would lower it, and what its gates leave open: what tuning takes."""
    with pipeline.pass_context():
        simplified = tvm.transform.Sequential(pipeline.simplify_passes())(model.mod)
        _, chosen, measured = _choose(model, simplified, soc, "auto", calibration, None)
    return chosen, measured


def _choose(
    model: Model,
    simplified: tvm.IRModule,
    soc: Soc,
    lowering: str,
    images: np.ndarray | None,
    tuned: Mapping[str, TunedKernel] | None,
) -> tuple[tvm.IRModule, tvm.IRModule, Calibration | None]:
    """The annotated module, the same with its kernels chosen, and what was measured for that."""
    annotated = pipeline.annotate(simplified)
    measured = None
    if images is not None and lowering == "auto":
        measured = _calibrate(model, annotated, images)
    products = None if measured is None else measured.open_products()
    chosen = pipeline.choose(annotated, soc, lowering, products, tuned)
    composites = [func for _, func in chosen.functions_items() if is_composite(func)]
    if tuned and not any("schedule" in func.attrs for func in composites):
        raise LogError(
            f"the log has none of {model.name}'s kernels on {soc.name}: it is of another network, "
            "or of another version of these kernels; tune this one, or compile it without --log"
        )
    return annotated, chosen, measured


def _calibrate(model: Model, annotated: tvm.IRModule, images: np.ndarray) -> Calibration:
    """What gates leave open on `images`.

    Found out on this machine: gates decide the same on all.
    """
    soc = load_soc("host")
    gated = tvm.IRModule({v: f for v, f in annotated.functions_items() if v.name_hint != TWIN})
    executable, weights = pipeline.build_apart(
        pipeline.lower(pipeline.choose(gated, soc, "indexed"), soc), soc
    )
    manifest = _manifest(model, annotated, soc, "indexed", {})
    with tempfile.TemporaryDirectory() as name:
        manifest = replace(manifest, **_export(executable, weights, Path(name), _linker(soc)))
        session = Session(Artifact(Path(name), manifest))
        session.run(images)
    return Calibration(manifest.layers, session.open_channels, len(images))


def _manifest(
    model: Model,
    annotated: tvm.IRModule,
    soc: Soc,
    lowering: str,
    unused: dict[str, str],
) -> Manifest:
    functions = dict(annotated.functions_items())
    main, dense = annotated["main"], annotated["dense"]
    infos = gate_infos(main)
    names = _unique([info.layer for info in infos])
    outputs = int(main.attrs["num_outputs"])
    return Manifest(
        network=model.name,
        soc=soc.name,
        target=dict(soc.target),
        features=required_features(soc),
        lowering=lowering,
        precision="float32",
        library="",
        weights="",
        weight_places=[],
        input_shape=list(shape_of(main.params[0]) or ()),
        output_shapes=[[int(s) for s in item.shape] for item in list(main.ret_ty.fields)[:outputs]],
        classes=list(model.classes),
        gates=[
            Gate(name, info.channels, info.group_size, info.threshold, info.threshold_index)
            for name, info in zip(names, infos, strict=True)
        ],
        layers=layer_macs(main, functions),
        dense_layers=layer_macs(dense, functions),
        choices=[],
        kernels={},
        unused_gates=unused,
        max_abs_error=None,
        versions=versions(),
    )


def _unique(names: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _export(
    executable: relax.VMExecutable,
    weights: Sequence[np.ndarray],
    folder: Path,
    linker: Callable[..., None] | None,
) -> dict[str, Any]:
    """Write library and weights into `folder`; returns what the manifest says of them."""
    library, data = folder / "library.so", folder / "weights.bin"
    executable.export_library(str(library), fcompile=linker)
    places = write_weights(data, weights)
    return {
        "library": _named_by_content(library),
        "weights": _named_by_content(data),
        "weight_places": places,
    }


def _named_by_content(path: Path) -> str:
    """Rename a file to have its checksum in its name; returns that."""
    name = f"{path.stem}-{sha256(path)[:12]}{path.suffix}"
    path.rename(path.with_name(name))
    return name


def _write_reference(folder: Path, model: Model, manifest: Manifest) -> None:
    """Write a few random inputs and what the model's own framework computes for them."""
    shape = manifest.input_shape
    batches = max(1, REFERENCE_IMAGES // shape[0])
    images = np.random.default_rng(0).random((batches * shape[0], *shape[1:]), "float32")
    pieces = [model.reference(piece) for piece in np.split(images, batches)]
    outputs = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
    arrays = {f"output_{i}": output for i, output in enumerate(outputs)}
    np.savez(folder / REFERENCE, allow_pickle=False, input=images, **arrays)


def _compared(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest with the error against the reference, which must be rounding only."""
    result = Session(Artifact(folder, manifest)).self_test()
    if not result.max_abs_error <= MISMATCH:
        raise NotLoweredError(
            f"{manifest.network}: compiled outputs differ from the reference by "
            f"{result.max_abs_error:.1e} of their scale; please report this network"
        )
    return replace(manifest, max_abs_error=result.max_abs_error)
