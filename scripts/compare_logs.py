# SPDX-License-Identifier: Apache-2.0
"""Compare two tuning logs of the same network, kernel by kernel.

python scripts/compare_logs.py tuning_logs/host/net tuning_logs/host/net_all_open
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tvm_dynprune.tune.best import read_best


def main() -> None:
    """Print expected ms of both, by their own measurements, and which schedules differ."""
    first, second = (read_best(Path(name)) for name in sys.argv[1:3])
    table = Table("kernel", "open", "ms", "ms", "schedule of the first", "of the second")
    for workload in first.keys() & second.keys():
        one, other = first[workload], second[workload]
        same = one.schedule == other.schedule
        table.add_row(
            ", ".join(one.task.layers),
            f"{one.task.open_fraction:.0%}, {other.task.open_fraction:.0%}",
            f"{one.expected_s * 1e3:.3f}",
            f"{other.expected_s * 1e3:.3f}",
            one.schedule.to_json(),
            "the same" if same else other.schedule.to_json(),
        )
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main()
