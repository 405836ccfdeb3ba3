# SPDX-License-Identifier: Apache-2.0
"""`soc detect`: profiles of invented machines, this one, and a device over RPC."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtime.test_rpc import INFO, server, status
from tests.test_cli import assert_one_line, run
from tvm_dynprune.errors import SocError
from tvm_dynprune.soc import Cluster, Soc, load_soc, read_profile, required_features
from tvm_dynprune.soc.detect import propose_profile
from tvm_dynprune.soc.machine import Machine, read_machine

PHONE = "fp asimd atomics fphp asimdhp asimdrdm lrcpc asimddp asimdfhm i8mm bf16"
PI = "fp asimd atomics fphp asimdhp asimdrdm lrcpc asimddp"


@pytest.fixture
def invent(tmp_path: Path):
    """A folder with the ``proc`` and ``sys`` of a machine whose cores are (part, kHz) or None."""

    def write(features: str, cores: list, caches: dict[int, str] | None = None) -> Path:
        (tmp_path / "proc").mkdir(exist_ok=True)
        blocks = []
        for number, core in enumerate(cores):
            part, khz = core or (None, None)
            folder = tmp_path / f"sys/devices/system/cpu/cpu{number}"
            (folder / "cpufreq").mkdir(parents=True)
            if khz:
                (folder / "cpufreq/cpuinfo_max_freq").write_text(f"{khz}\n")
            for level, size in (caches or {}).items():
                index = folder / f"cache/index{level}"
                index.mkdir(parents=True)
                for name, value in (("level", level), ("type", "Unified"), ("size", size)):
                    (index / name).write_text(f"{value}\n")
            blocks.append(f"processor\t: {number}\n")
            if part is None:
                blocks.append(f"model name\t: Invented x86\nflags\t\t: {features}\n\n")
            else:
                implementer = "0x51" if part in ("0x802", "0x803") else "0x41"
                blocks.append(
                    f"Features\t: {features}\nCPU implementer\t: {implementer}\n"
                    f"CPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: {part}\n\n"
                )
        (tmp_path / "proc/cpuinfo").write_text("".join(blocks))
        return tmp_path

    return write


def propose(machine: Machine, tmp_path: Path) -> tuple[Soc, str]:
    """What is written, as it is read again."""
    path = tmp_path / "found.toml"
    path.write_text(propose_profile(machine, "found", "2026-01-02"))
    return read_profile(path), path.read_text()


def test_a_phone_with_four_kinds_of_cores(invent, tmp_path):
    cores = [("0xd46", 2016000)] * 3 + [("0xd4d", 2803200)] * 2 + [("0xd47", 2803200)] * 2
    root = invent(PHONE, [*cores, ("0xd4e", 3187200)])
    machine = read_machine(root, "Linux 5.15.78-android13-8", "aarch64", "unknown")
    soc, text = propose(machine, tmp_path)
    assert soc.clusters == (
        Cluster("prime", 1, "cortex-x3", 3187),
        Cluster("big", 2, "cortex-a715", 2803),
        Cluster("middle", 2, "cortex-a710", 2803),
        Cluster("little", 3, "cortex-a510", 2016),
    )
    assert (soc.network_cluster, soc.cores, soc.lanes, soc.vector_registers) == ("prime", 1, 4, 32)
    assert soc.target == load_soc("snapdragon-8-gen-2").target
    assert required_features(soc) == required_features(load_soc("snapdragon-8-gen-2"))
    assert (soc.l1d_kib, soc.l2_kib, soc.l3_kib) == (32, 256, 0)
    assert "# Detected on 2026-01-02: this machine, Linux 5.15.78-android13-8.\n" in text
    assert "# Caches: not told" in text
    # Of the first shipped profile for a Cortex-X3.
    assert "# Taken over from snapdragon-8-gen-2, not measured" in text


def test_what_an_old_kernel_does_not_list_is_switched_off(invent, tmp_path):
    cores = [("0x803", 1766400)] * 4 + [("0x802", 2803200)] * 4
    root = invent("fp asimd atomics fphp asimdhp", cores)
    machine = read_machine(root, "Linux 4.9.112-android", "aarch64", "unknown")
    soc, _ = propose(machine, tmp_path)
    shipped = load_soc("snapdragon-845")
    assert soc.clusters == shipped.clusters
    assert set(soc.target["mattr"]) == set(shipped.target["mattr"])
    assert required_features(soc) == ["asimd", "atomics", "asimdhp"]


def test_a_board(invent, tmp_path):
    root = invent(PI, [("0xd0b", 2400000)] * 4, {1: "64K", 2: "512K", 3: "2M"})
    (root / "proc/device-tree").mkdir()
    (root / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    soc, text = propose(read_machine(root, "Linux 6.6.20", "aarch64", "unknown"), tmp_path)
    shipped = load_soc("raspberry-pi-5")
    assert soc.description == "Raspberry Pi 5 Model B Rev 1.0"
    for name in ("target", "clusters", "network_cluster", "cache_kib", "l1d_kib", "l2_kib", "cost"):
        assert getattr(soc, name) == getattr(shipped, name), name
    assert "not told" not in text


@pytest.mark.parametrize(
    ("flags", "mattr", "lanes"),
    [
        ("fpu avx2 fma avx512f avx512bw avx512cd avx512dq avx512vl", None, 16),
        ("fpu avx2 fma", [f"-avx512{name}" for name in ("f", "bw", "cd", "dq", "vl")], 8),
    ],
)
def test_a_server_may_hide_vectors(invent, tmp_path, flags, mattr, lanes):
    root = invent(flags, [None] * 2, {1: "32K", 2: "1M"})
    soc, text = propose(read_machine(root, "Linux 6.6", "x86_64", "znver4"), tmp_path)
    assert soc.clusters == (Cluster("all", 2, "znver4", None),)
    assert (soc.lanes, soc.target.get("mattr")) == (lanes, mattr)
    assert soc.description == "Invented x86"
    assert "# Frequencies: not told" in text


def test_an_unknown_processor_gets_code_that_runs_on_all(invent, tmp_path):
    machine = read_machine(invent(PI, [("0xfff", 2000000)]), "Linux 6.6", "aarch64", "unknown")
    soc, text = propose(machine, tmp_path)
    assert soc.target["mcpu"] == "generic"
    assert set(required_features(soc)) == {"asimd", *PI.split()} - {"fp", "fphp"}
    assert "# Processor: not told, or not known here" in text


def test_three_kinds_and_many_kinds_have_names(invent, tmp_path):
    cores = [("0xd05", 1000000), ("0xd05", 1100000), ("0xd0b", 1200000), ("0xd0b", 1300000)]
    root = invent(PI, [*cores, ("0xd44", 1400000)])
    machine = read_machine(root, "Linux 6.6", "aarch64", "unknown")
    names = [cluster.name for cluster in propose(machine, tmp_path)[0].clusters]
    assert names == [f"cluster{index}" for index in range(5)]
    three = replace(machine, cores=machine.cores[2:])
    names = [cluster.name for cluster in propose(three, tmp_path)[0].clusters]
    assert names == ["prime", "big", "little"]


def test_another_architecture_is_an_error():
    machine = Machine("device a:1", "", "Linux 6.6", "riscv64", (), None)
    with pytest.raises(SocError, match=r"device a:1 is riscv64: profiles are for x86_64, aarch64"):
        propose_profile(machine, "x", "2026-01-02")


def test_this_machine(tmp_path):
    out = tmp_path / "here.toml"
    found = run("soc", "detect", "--out", out)
    assert found.returncode == 0, found.stderr
    assert found.stdout == out.read_text()
    soc, host = read_profile(out), load_soc("host")
    assert soc.name == "here"
    assert (soc.target["mcpu"], soc.lanes, soc.cache_kib, soc.cost) == (
        host.target["mcpu"],
        host.lanes,
        host.cache_kib,
        host.cost,
    )
    assert_one_line(run("soc", "detect", "--out", out), "exists")
    assert run("soc", "detect", "--out", out, "--force").returncode == 0


def test_a_device_over_rpc(tmp_path):
    info = replace(
        INFO, features=PI.split(), system="Linux 6.1-android14", core_max_khz=[1800000, 2400000]
    )
    out = tmp_path / "phone.toml"
    with server(status(info)) as address:
        found = run("soc", "detect", "--device", address, "--out", out)
    assert found.returncode == 0, found.stderr
    soc = read_profile(out)
    assert soc.clusters == (
        Cluster("big", 1, "generic", 2400),
        Cluster("little", 1, "generic", 1800),
    )
    assert soc.target["mtriple"].endswith("android26")
    assert {"asimdhp", "asimddp"} <= set(required_features(soc))
    assert f"device {address}, Linux 6.1-android14" in found.stdout
    assert "# Processor: not told" in found.stdout
    assert "# Caches: not told" in found.stdout
    assert_one_line(run("soc", "detect", "--key", "phone"), "--tracker HOST:PORT with --key KEY")
