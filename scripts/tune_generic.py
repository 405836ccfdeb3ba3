# SPDX-License-Identifier: Apache-2.0
"""Tune a network without gates in TVM's own way, to compare: MetaSchedule's generic space.

python scripts/tune_generic.py resnet18 15 WORK_DIR [LOG [PLOT]]

Prints how the expected time of all kernels fell, and the network's latency on one core; draws the
curve beside that of a log of `tvm-dynprune tune`. Weights are laid out as the schedules ask for.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.meta_schedule.builder.local_builder import _serialize_params, _worker_func
from tvm.support.popen_pool import PopenPoolExecutor, StatusKind

from tvm_dynprune.bench.forced import Forced, Gating, force_gates, forced_model, outputs
from tvm_dynprune.bench.turns import pinned
from tvm_dynprune.report.tuning_plot import plot_curves
from tvm_dynprune.soc import load_soc
from tvm_dynprune.tune.best import read_best
from tvm_dynprune.tune.curve import tuning_curve
from tvm_dynprune.tune.log import read_trials


class Late(Exception):  # noqa: N818
    """No error."""


@derived_object
class Curve(ms.measure_callback.PyMeasureCallback):
    """Expected time after each batch of trials; stops when the minutes are over."""

    def __init__(self, weights: list[float], minutes: float) -> None:
        super().__init__()
        self.best, self.weights = [np.inf] * len(weights), weights
        self.minutes, self.started, self.trials = minutes, time.monotonic(), 0
        self.curve: list[tuple[int, float, float]] = []

    def apply(self, scheduler, task_id, candidates, builds, results) -> None:
        """Count what ran."""
        for result in results:
            self.trials += 1
            if result.run_secs:
                seconds = float(np.mean([float(s) for s in result.run_secs]))
                self.best[task_id] = min(self.best[task_id], seconds)
        at_s, total = time.monotonic() - self.started, float(np.dot(self.best, self.weights))
        if np.isfinite(total):
            self.curve.append((self.trials, at_s, total * 1e3))
            print(f"{self.trials} trials, {at_s / 60:.1f} min, {total * 1e3:.2f} ms", flush=True)
        if at_s > 60 * self.minutes:
            raise Late


@derived_object
class WarmBuilder(ms.builder.PyBuilder):
    """TVM's builder, but for workers that are kept: it starts new ones, 12 s each, per batch."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PopenPoolExecutor(timeout=60)

    def build(self, build_inputs) -> list[ms.builder.BuilderResult]:
        """Build each."""
        jobs = [(None, None, b.mod, b.target, _serialize_params(b.params)) for b in build_inputs]
        done = StatusKind.COMPLETE
        return [
            ms.builder.BuilderResult(r.value, None)
            if r.status == done
            else ms.builder.BuilderResult(None, str(r.value))
            for r in self.pool.map_with_error_catching(lambda x: _worker_func(*x), jobs)
        ]


def main() -> None:
    """Tune, compile, measure, draw."""
    network, minutes, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    target = load_soc("host").tvm_target()
    forced = force_gates(network, Gating())
    mod = forced_model(Forced(network, forced.dense, forced.dense, forced.images)).mod
    before = [
        relax.transform.DecomposeOpsForInference(),
        relax.transform.CanonicalizeBindings(),
        relax.get_pipeline("zero"),
        relax.transform.AttachAttrLayoutFreeBuffers(),
    ]
    with target:
        mod = tvm.transform.Sequential(before)(mod)
    tasks, weights = ms.relax_integration.extracted_tasks_to_tune_contexts(
        ms.relax_integration.extract_tasks(mod, target),
        str(folder),
        space=ms.space_generator.PostOrderApply(
            sch_rules="llvm", postprocs="llvm", mutator_probs="llvm"
        ),
        seed=0,
    )
    callback = Curve(weights, minutes)
    callbacks = [
        ms.measure_callback.AddToDatabase(),
        ms.measure_callback.UpdateCostModel(),
        callback,
    ]
    try:
        ms.tune.tune_tasks(
            tasks=tasks,
            task_weights=weights,
            work_dir=str(folder),
            max_trials_global=10**6,
            num_trials_per_iter=16,
            measure_callbacks=callbacks,
            builder=WarmBuilder(),
        )
    except Exception:
        if time.monotonic() - callback.started < 60 * minutes:
            raise
    (folder / "curve.json").write_text(json.dumps(callback.curve))
    with target:
        after = [
            relax.transform.MetaScheduleApplyDatabase(str(folder)),
            relax.transform.SplitLayoutRewritePreproc(),
            relax.transform.LiftTransformParams(),
            relax.transform.FoldConstant(),
        ]
        mod = tvm.transform.Sequential(after)(mod)
    measure(mod, target, forced)
    if len(sys.argv) > 4:
        log = Path(sys.argv[4])
        curves = {
            "gated, our space": tuning_curve(read_best(log).values(), list(read_trials(log))),
            "dense, MetaSchedule's generic space": callback.curve,
        }
        plot_curves(curves, Path(sys.argv[5]))


def measure(mod: tvm.IRModule, target: tvm.target.Target, forced: Forced) -> None:
    """Print the largest error and the median latency of a tuned network."""
    machine = relax.VirtualMachine(tvm.compile(mod, target=target), tvm.cpu())
    call = machine["main"]
    with pinned(1):
        image = tvm.runtime.tensor(forced.images[:1])
        found = call(image)
        found = (found if hasattr(found, "numpy") else found[0]).numpy()
        wanted = outputs(forced.dense, forced.images[:1])
        print(f"largest error {np.abs(found - wanted).max() / np.abs(wanted).max():.1e}")
        times = []
        for _ in range(60):
            started = time.perf_counter()
            call(image)
            times.append((time.perf_counter() - started) * 1e3)
    times = times[10:]
    print(f"{np.median(times):.2f} ms ({min(times):.2f} to {max(times):.2f})")


if __name__ == "__main__":
    main()
