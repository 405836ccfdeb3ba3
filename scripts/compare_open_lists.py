# SPDX-License-Identifier: Apache-2.0
"""Tune networks at the open lists of their gates, and as if all were open; compare on the lists.

python scripts/compare_open_lists.py OUT TRIALS_PER_KERNEL NETWORK...

Half of the groups are open. Both ways get the same trials; then the kernels that each of them found
best are timed at the open lists, in turns. An interrupted run goes on where it was.
"""

import sys
from pathlib import Path

import numpy as np

from tvm_dynprune.bench.forced import Gating, force_gates, forced_model
from tvm_dynprune.compiler import choose_kernels
from tvm_dynprune.kernels.workload import workload_key
from tvm_dynprune.soc import Soc, load_soc
from tvm_dynprune.tune.best import read_best
from tvm_dynprune.tune.extract import extract_tasks
from tvm_dynprune.tune.log import RunInfo
from tvm_dynprune.tune.progress import Budget
from tvm_dynprune.tune.task import TuningTask
from tvm_dynprune.tune.tuner import cores, tune
from tvm_dynprune.tune.workers import Workers

TURNS = 15


def main() -> None:
    """Tune, compare, print Markdown."""
    out, per_kernel, soc = Path(sys.argv[1]), int(sys.argv[2]), load_soc("host")
    print("| network | kernels, the same | at the open lists, ms | as if all open, ms | ratio |")
    print("|---|---|---|---|---|")
    for network in sys.argv[3:]:
        forced = force_gates(network, Gating())
        chosen, calibration = choose_kernels(forced_model(forced), soc, forced.images)
        found, tasks = [], []
        for name, lists in (("real", calibration), ("all_open", None)):
            tasks = [t for t in extract_tasks(chosen, soc, lists) if t.spec.open_in]
            folder, budget = out / network / name, Budget(trials=per_kernel * len(tasks))
            tune(tasks, soc, folder, RunInfo(network, soc.name, dict(soc.target)), budget)
            found.append(read_best(folder))
        real = [t for t in extract_tasks(chosen, soc, calibration) if t.spec.open_in]
        times_ms, same = compare(real, soc, found)
        cells = " | ".join(f"{time_ms:.3f}" for time_ms in times_ms)
        ratio = times_ms[1] / times_ms[0]
        print(f"| {network} | {len(real)}, {same} | {cells} | {ratio:.3f} |", flush=True)


def compare(tasks: list[TuningTask], soc: Soc, found: list[dict]) -> tuple[np.ndarray, int]:
    """Expected ms of all kernels by each log's best schedules; for how many kernels both agree."""
    target = {"kind": "llvm", "num-cores": 1, **soc.target}
    workers = Workers(target, cores(), lambda *_: None, lambda *_: None)
    total, same = np.zeros(len(found)), 0
    for task in tasks:
        schedules = [best[workload_key(task.spec)].schedule for best in found]
        same += schedules[0] == schedules[1]
        jobs = [(task, schedule) for schedule in schedules]
        timed = [seconds for seconds, _ in workers.time_inputs(jobs, TURNS)]
        medians = np.array(timed) @ [lists.share for lists in task.inputs]
        if schedules[0] == schedules[1]:
            medians[:] = medians.mean()
        total += medians * len(task.layers) * 1e3
    workers.close()
    return total, same


if __name__ == "__main__":
    main()
