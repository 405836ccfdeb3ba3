# SPDX-License-Identifier: Apache-2.0
"""The compiler's table of contents: which passes run, in which order, and why."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tvm
from tvm import relax

from tvm_dynprune.kernels.tir_pipeline import TIR_PIPELINE
from tvm_dynprune.kernels.tuned import TunedKernel
from tvm_dynprune.passes.add_by_kernel_twins import AddByKernelTwins
from tvm_dynprune.passes.add_dense_twin import AddDenseTwin
from tvm_dynprune.passes.annotate_open import AnnotateOpen
from tvm_dynprune.passes.apply_schedules import ApplySchedules
from tvm_dynprune.passes.canonicalize_clip import CanonicalizeClip
from tvm_dynprune.passes.canonicalize_group_norm import CanonicalizeGroupNorm
from tvm_dynprune.passes.canonicalize_pooling import CanonicalizePooling
from tvm_dynprune.passes.choose_algorithm import ChooseAlgorithm
from tvm_dynprune.passes.choose_lowering import ChooseLowering
from tvm_dynprune.passes.concatenate_decisions import ConcatenateDecisions
from tvm_dynprune.passes.conv2d_spec import kernel_target
from tvm_dynprune.passes.expose_gates import ExposeGates
from tvm_dynprune.passes.fold_batch_norm import FoldBatchNorm
from tvm_dynprune.passes.fuse_kernels import FuseKernels
from tvm_dynprune.passes.hoist_gate_pooling import HoistGatePooling
from tvm_dynprune.passes.instruments import CheckWellFormed, Timer
from tvm_dynprune.passes.lift_weights import lift_weights
from tvm_dynprune.passes.linear_to_conv2d import LinearToConv2d
from tvm_dynprune.passes.lower_kernels import LowerKernels, check_lowered
from tvm_dynprune.passes.merge_kernel_calls import MergeKernelCalls
from tvm_dynprune.passes.merge_small_kernels import MergeSmallKernels
from tvm_dynprune.passes.move_channels_first import MoveChannelsFirst
from tvm_dynprune.passes.multiply_by_reciprocal import MultiplyByReciprocal
from tvm_dynprune.passes.sink_into_branches import SinkIntoBranches
from tvm_dynprune.passes.use_float16 import UseFloat16, check_weights
from tvm_dynprune.soc import Soc


def simplify_passes() -> list[tvm.transform.Pass]:
    """Phase 1: few forms for the same thing."""
    return [
        relax.transform.CanonicalizeBindings(),  # importers' tuples and aliases hide data flow
        relax.transform.FoldConstant(),  # reshaped biases become constants
        CanonicalizeClip(),
        MoveChannelsFirst,
        FoldBatchNorm,
        CanonicalizeGroupNorm,
        MultiplyByReciprocal,
        CanonicalizePooling,
        HoistGatePooling,
        LinearToConv2d,
        relax.transform.EliminateCommonSubexpr(),  # gates that pool the same tensor pool it once
        relax.transform.CanonicalizeBindings(),  # what it leaves counts as one more reader
    ]


def recognise_passes(*, twin: bool) -> list[tvm.transform.Pass]:
    """Phase 2: find the gates, and put each kernel's work into one function."""
    add_twin = [AddDenseTwin()] if twin else []
    return [*add_twin, ExposeGates(), FuseKernels()]


def propagate_passes() -> list[tvm.transform.Pass]:
    """Phase 3: which channels count, forward and backward."""
    return [
        AnnotateOpen(),
        relax.transform.EliminateCommonSubexpr(),
        relax.transform.CanonicalizeBindings(),
    ]


def choose_passes(
    soc: Soc,
    lowering: str,
    open_products: Mapping[str, float] | None,
    tuned: Mapping[str, TunedKernel] | None = None,
) -> list[tvm.transform.Pass]:
    """Phase 4: how each kernel skips, and by which algorithm and schedule it computes.

    A lowering that was asked for by name comes with direct convolutions, `auto` with the fastest.
    """
    target = kernel_target(soc)
    return [
        ChooseLowering(lowering, open_products),
        ChooseAlgorithm(
            soc.lanes,
            soc.cost,
            soc.cache_kib,
            open_products,
            winograd=lowering == "auto",
            registers=target.transform_registers,
        ),
        *([ApplySchedules(target, tuned, open_products)] if tuned else []),
    ]


def build_passes(precision: str = "float32") -> list[tvm.transform.Pass]:
    """Phase 6: what TVM does with the rest, and the VM's own lowering."""
    return [
        relax.backend.DispatchSortScan(),
        relax.transform.ConvertToDataflow(min_size=1),  # around an If there is no dataflow yet
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
        MergeSmallKernels(),
        relax.transform.ToNonDataflow(),
        ConcatenateDecisions(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.CanonicalizeBindings(),  # or the VM makes tuples and takes them apart
        relax.transform.DeadCodeElimination(),
        *([UseFloat16()] if precision == "float16" else []),
        AddByKernelTwins(),
        MergeKernelCalls(),
        relax.transform.LowerAllocTensor(),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]


def annotate(mod: tvm.IRModule, *, twin: bool = True) -> tvm.IRModule:
    """Phases 1 to 3: from an imported network to composite calls with open sets.

    Parameters
    ----------
    mod
        What `from_onnx` or `from_exported` returned.
    twin
        Add the function ``dense``, the network without its gates.
    """
    passes = [*simplify_passes(), *recognise_passes(twin=twin), *propagate_passes()]
    return tvm.transform.Sequential(passes)(mod)


def choose(
    mod: tvm.IRModule,
    soc: Soc,
    lowering: str = "auto",
    open_products: Mapping[str, float] | None = None,
    tuned: Mapping[str, TunedKernel] | None = None,
) -> tvm.IRModule:
    """Phase 4: from what `annotate` returned to composite calls whose kernels are chosen.

    `tuned` is what a tuning log says of kernels, by `workload_key`.
    """
    passes = choose_passes(soc, lowering, open_products, tuned)
    return tvm.transform.Sequential(passes)(mod)


def lower(mod: tvm.IRModule, soc: Soc) -> tvm.IRModule:
    """Phase 5: from what `choose` returned to calls of TIR kernels.

    Raises
    ------
    NotLoweredError
        A kernel was not lowered.
    """
    with soc.tvm_target():
        mod = LowerKernels(kernel_target(soc))(mod)
        mod = SinkIntoBranches()(mod)
    check_lowered(mod)
    return mod


def optimize(mod: tvm.IRModule, soc: Soc, lowering: str = "auto") -> tvm.IRModule:
    """All of our passes: from an imported network to calls of TIR kernels.

    Parameters
    ----------
    mod
        What `from_onnx` or `from_exported` returned.
    soc
        Where the network will run; see `load_soc`.
    lowering
        "auto", "dense", "if" or "indexed".

    Raises
    ------
    NotLoweredError
        A kernel was not lowered.
    """
    return lower(choose(annotate(mod), soc, lowering), soc)


def build(mod: tvm.IRModule, soc: Soc) -> relax.VMExecutable:
    """Compile what `optimize` returned for the SoC's target."""
    return _code(_ready(mod, soc), soc)


def build_apart(
    mod: tvm.IRModule, soc: Soc, precision: str = "float32"
) -> tuple[relax.VMExecutable, list[np.ndarray]]:
    """Compile what `optimize` returned; its functions take the weights as their last argument.

    For "float16" the layout of `mod` has to be that of `in_precision`.

    Raises
    ------
    NotLoweredError
        A weight is too large for float16.
    """
    if precision == "float16":
        check_weights(mod)
    ready, weights = lift_weights(_ready(mod, soc, precision))
    return _code(ready, soc), weights


def _ready(mod: tvm.IRModule, soc: Soc, precision: str = "float32") -> tvm.IRModule:
    with soc.tvm_target():
        return tvm.transform.Sequential(build_passes(precision))(mod)


def _code(mod: tvm.IRModule, soc: Soc) -> relax.VMExecutable:
    no_passes = tvm.transform.Sequential([])
    target = soc.tvm_target()
    with target:
        return relax.build(mod, target, relax_pipeline=no_passes, tir_pipeline=TIR_PIPELINE)


def pass_context(
    dump_ir: Path | None = None, timer: Timer | None = None
) -> tvm.transform.PassContext:
    """A context in which every pass is checked, and dumped or timed if asked for.

    Parameters
    ----------
    dump_ir
        If given, the module after each pass is written there as ``000_<pass>.py``.
    timer
        If given, it collects each pass's time.
    """
    instruments: list = [CheckWellFormed()]
    if dump_ir is not None:
        dump_ir.mkdir(parents=True, exist_ok=True)
        instruments.append(tvm.ir.instrument.DumpIR(str(dump_ir)))
    if timer is not None:
        instruments.append(timer)
    # Kernels are called with what they were compiled for: checking it again takes time and code.
    config = {"tirx.disable_assert": True}
    return tvm.transform.PassContext(opt_level=3, instruments=instruments, config=config)
