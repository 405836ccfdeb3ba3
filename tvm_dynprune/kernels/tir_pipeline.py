# SPDX-License-Identifier: Apache-2.0
"""What lies between our kernels and LLVM; importing it registers the pipeline under its name.

::

    tvm.compile(mod, target, tir_pipeline=TIR_PIPELINE)
"""

import tvm
from tvm import tirx
from tvm.s_tir import pipeline as default, transform as s_tir_transform
from tvm.tirx import transform as tirx_transform

TIR_PIPELINE = "tvm_dynprune"
"""TVM's own pipeline without what only GPUs need, and without two passes.

CompactBufferAllocation and HoistIfThenElse took two fifths of its time and changed next to nothing:
kernels allocate what they use, a few a little more, and have their conditions where they belong.
"""

_LOWER_TIR = tvm.transform.Sequential(
    [
        s_tir_transform.CanonicalizeLoop(),
        s_tir_transform.LowerInitBlock(),
        s_tir_transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir_transform.ConvertBlocksToOpaque(),
        s_tir_transform.LowerMatchBuffer(),
        s_tir_transform.StmtSimplify(),
        s_tir_transform.LowerOpaqueBlock(),
        tirx_transform.FlattenBuffer(),
        tirx_transform.BF16ComputeLegalize(),
        tirx_transform.NarrowDataType(32),
        s_tir_transform.LoopPartition(),
        tirx_transform.VectorizeLoop(),
        tirx_transform.StorageRewrite(),
        tirx_transform.UnrollLoop(),
        s_tir_transform.RenormalizeSplitPattern(),
        tirx_transform.StmtSimplify(),
        tirx_transform.RemoveNoOp(),
        s_tir_transform.RewriteUnsafeSelect(),
        tirx_transform.CommonSubexprElim(),
        tirx_transform.FP8ComputeLegalize(),
        tirx_transform.VerifyMemory(),
        tirx_transform.AnnotateEntryFunc(),
        tirx_transform.SplitHostDevice(),
        tirx_transform.MakePackedAPI(),
        tirx_transform.FP8StorageLegalize(),
        tirx_transform.BF16StorageLegalize(),
    ],
    name="LowerTIR",
)

tirx.register_tir_pipeline(
    TIR_PIPELINE,
    lambda: (_LOWER_TIR, default.finalize_host_passes, default.finalize_device_passes),
)
