# SPDX-License-Identifier: Apache-2.0
"""SoC profiles: those that ship, the machine itself, and files that are wrong."""

import dataclasses
from pathlib import Path

import pytest
import tvm
from tvm.target import codegen

from tvm_dynprune.errors import SocError
from tvm_dynprune.soc import (
    Cluster,
    Cost,
    Soc,
    count_cores,
    detect_host,
    hidden_x86_features,
    in_precision,
    list_socs,
    load_soc,
    missing_here,
    read_caches,
    read_profile,
    required_features,
)

# Half precision, dot products, i8mm: what the phones' own kernels list, by the names of these.
SHIPPED = {
    "aarch64-generic": [],
    "android-generic": [],
    "dimensity-9300": ["asimdhp", "asimddp", "i8mm"],
    "exynos-2400": ["asimdhp", "asimddp", "i8mm"],
    "kirin-970": [],
    "raspberry-pi-4": [],
    "raspberry-pi-5": ["asimdhp", "asimddp"],
    "snapdragon-8-gen-2": ["asimdhp", "asimddp", "i8mm"],
    "snapdragon-8-gen-3": ["asimdhp", "asimddp", "i8mm"],
    "snapdragon-845": ["asimdhp"],
    "tensor-g3": ["asimdhp", "asimddp", "i8mm"],
    "x86-avx2": [],
    "x86-avx512": [],
}
PROFILE = """\
description = "a board"
network_cluster = "big"
lanes = 4
vector_registers = 32
l1d_kib = 32
l2_kib = 512
l3_kib = 0

[[clusters]]
name = "big"
cores = 2
mcpu = "cortex-a53"
max_mhz = 1500

[[clusters]]
name = "little"
cores = 4
mcpu = "cortex-a35"

[target]
mtriple = "aarch64-linux-gnu"
mcpu = "cortex-a53"

[cost]
transform = 2.0
weight = 8
cached_weight = 1
weight_transform = 4
gather = 16
"""


@pytest.fixture
def profile(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "board.toml"
        path.write_text(text)
        return path

    return write


def test_lists_host_first_then_the_profiles():
    assert list_socs() == ["host", *SHIPPED]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_agrees_with_llvm_about_its_vectors(name):
    soc = load_soc(name)
    target = soc.tvm_target()
    features = codegen.llvm_get_cpu_features(target)
    needed = {16: {"avx512f", "avx512vl"}, 8: {"avx2", "fma"}, 4: {"neon"}}[soc.lanes]
    assert needed <= features
    assert soc.vector_registers == (16 if soc.lanes == 8 else 32)
    assert target.attrs["num-cores"] == soc.cores


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profile_is_consistent(name):
    soc = load_soc(name)
    names = [cluster.name for cluster in soc.clusters]
    assert names in (
        ["all"],
        ["big", "little"],
        ["prime", "big", "little"],
        ["prime", "big", "middle"],
        ["prime", "big", "middle", "little"],
    )
    triple = soc.target["mtriple"]
    assert all(codegen.llvm_is_valid_cpu(cluster.mcpu, triple) for cluster in soc.clusters)
    speeds = [cluster.max_mhz or 0 for cluster in soc.clusters]
    assert speeds == sorted(speeds, reverse=True)
    assert soc.network_cluster in (names[0], "all")  # the fastest
    assert sum(cluster.cores for cluster in soc.clusters) in (4, 8, 9, 10)


@pytest.mark.parametrize(("name", "listed"), SHIPPED.items())
def test_shipped_profile_uses_what_the_processor_has(name, listed):
    features = required_features(load_soc(name))
    assert [one for one in ("asimdhp", "asimddp", "i8mm") if one in features] == listed
    assert "sve" not in features  # hidden by many phones' kernels


def test_host_is_this_machine():
    soc = load_soc("host")
    assert soc.name == "host"
    assert soc.cores == count_cores()
    assert soc.target["mcpu"] == codegen.llvm_get_system_cpu()
    assert soc.lanes in (4, 8, 16)
    module = tvm.compile(tvm.IRModule({"main": _double()}), target=soc.tvm_target())
    x, y = (tvm.runtime.empty((16,), "float32") for _ in range(2))
    x.copyfrom([1.0] * 16)
    module["main"](x, y)
    assert y.numpy().tolist() == [2.0] * 16


def _double():
    from tvm import te

    x = te.placeholder((16,), "float32", "x")
    return te.create_prim_func([x, te.compute((16,), lambda i: x[i] * 2.0, "y")]).with_attr(
        "global_symbol", "main"
    )


def test_a_host_of_another_architecture_is_told_what_there_is(monkeypatch):
    monkeypatch.setattr(codegen, "llvm_get_system_triple", lambda: "riscv64-linux-gnu")
    with pytest.raises(SocError, match=r"this machine is riscv64.*raspberry-pi-5"):
        detect_host()


@pytest.mark.parametrize(
    ("flags", "hidden"),
    [
        ("fpu avx2 fma avx512f avx512vl", []),
        ("fpu avx2 fma", ["avx512f", "avx512vl"]),
        ("fpu", ["avx2", "fma", "avx512f", "avx512vl"]),
    ],
)
def test_features_that_a_virtual_machine_hides_are_found(tmp_path, flags, hidden):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t:\n")
    assert hidden_x86_features({"avx2", "fma", "avx512f", "avx512vl", "bmi"}, cpuinfo) == hidden


def test_features_are_believed_where_the_kernel_says_nothing(tmp_path):
    assert hidden_x86_features({"avx2"}, tmp_path / "none") == []
    (tmp_path / "cpuinfo").write_text("Hardware : BCM2712\n")
    assert hidden_x86_features({"avx2"}, tmp_path / "cpuinfo") == []


def test_caches_are_read_from_sysfs(tmp_path):
    for index, (level, kind, size) in enumerate(
        [
            (1, "Data", "48K"),
            (1, "Instruction", "64K"),
            (2, "Unified", "2048K"),
            (3, "Unified", "8M"),
        ]
    ):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    assert read_caches(tmp_path) == (48, 2048, 8192)
    (tmp_path / "index2" / "size").unlink()
    assert read_caches(tmp_path) == (48, 256, 8192)
    assert read_caches(tmp_path / "none") == (32, 256, 0)


def test_unknown_soc_lists_the_known_ones():
    with pytest.raises(
        SocError, match=r"unknown SoC 'pixel-99': known are host, aarch64-generic, .*"
    ):
        load_soc("pixel-99")


def test_a_profile_of_ones_own_is_named_by_its_file(profile):
    assert load_soc(str(profile(PROFILE))) == read_profile(profile(PROFILE))


@pytest.mark.parametrize("name", ["../schedules/x86-avx2", "", "x86-avx2.toml"])
def test_a_name_is_no_path(name):
    with pytest.raises(SocError, match="unknown SoC"):
        load_soc(name)


def test_a_profile_is_read_whole(profile):
    target = {"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a53"}
    assert read_profile(profile(PROFILE)) == Soc(
        "board",
        "a board",
        target,
        (Cluster("big", 2, "cortex-a53", 1500), Cluster("little", 4, "cortex-a35", None)),
        "big",
        lanes=4,
        vector_registers=32,
        l1d_kib=32,
        l2_kib=512,
        l3_kib=0,
        cost=Cost(2.0, 8.0, 1.0, 4.0, 16.0),
    )


def test_cores_are_those_of_the_cluster_that_runs_the_network(profile):
    assert read_profile(profile(PROFILE)).cores == 2
    little = PROFILE.replace('= "big"\nlanes', '= "little"\nlanes')
    soc = read_profile(
        profile(little.replace('gnu"\nmcpu = "cortex-a53"', 'gnu"\nmcpu = "cortex-a35"'))
    )
    assert soc.cores == soc.tvm_target().attrs["num-cores"] == 4


def test_a_soc_does_not_change(profile):
    soc = read_profile(profile(PROFILE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        soc.cores = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lanes = 4", "lanes = 4\ncolour = 1", r"board\.toml: unknown key colour; known are desc"),
        (
            'gnu"\nmcpu',
            'gnu"\nmcpus',
            r"board\.toml: unknown key target\.mcpus; known are mtriple, mcpu, mattr",
        ),
        ("max_mhz", "mhz", r"unknown key clusters\.mhz; known are name, cores, mcpu, max_mhz"),
        ("cores = 4\n", "", r"board\.toml: missing key clusters\.cores"),
        ("= 1500", "= 0", r"clusters\.max_mhz = 0 is not a positive whole number"),
        ('name = "little"', 'name = "big"', r"board\.toml: two clusters have the same name"),
        ('name = "little"', "name = 1", r"clusters\.name = 1 is not a text"),
        ('"big"\nlanes', '"huge"\nlanes', r"network_cluster = 'huge' is none of big, little"),
        (
            '"big"\nlanes',
            '"little"\nlanes',
            r"target\.mcpu = 'cortex-a53', but cluster 'little', .*, is 'cortex-a35'",
        ),
        ("[target]", '[target]\nmattr = ["sve"]', r"mattr has 'sve': each is \+FEATURE or -FEAT"),
        ("lanes = 4\n", "", r"board\.toml: missing key lanes"),
        ('gnu"\nmcpu = "cortex-a53"', 'gnu"', r"board\.toml: missing key target\.mcpu"),
        ("cores = 2", "cores = 0", r"clusters\.cores = 0 is not a positive whole number"),
        ("cores = 2", "cores = true", r"clusters\.cores = True is not a positive whole number"),
        ("l2_kib = 512", "l2_kib = 0.5", r"l2_kib = 0\.5 is not a positive whole number"),
        ('"a board"', "7", r"description = 7 is not a text"),
        (
            'gnu"\nmcpu = "cortex-a53"',
            'gnu"\nmcpu = ["a"]',
            r"target\.mcpu = \['a'\] is not a str",
        ),
        ("transform = 2.0", "transform = 0", r"cost\.transform = 0 is not a positive number"),
        ("weight = 8", 'weight = "8"', r"cost\.weight = '8' is not a positive number"),
        (
            "weight = 8",
            "weights = 8",
            r"unknown key cost\.weights; known are transform, weight, cached_weight, "
            r"weight_transform, gather",
        ),
        ("cores = 2", "cores =", r"board\.toml: not a TOML file"),
    ],
)
def test_a_malformed_profile_is_named_with_file_and_key(profile, old, new, message):
    assert old in PROFILE
    with pytest.raises(SocError, match=message) as caught:
        read_profile(profile(PROFILE.replace(old, new)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("target", "target is not a table with mtriple"),
        ("cost", "cost is not a table with transform"),
        ("clusters", "clusters is not a list of tables with name, cores, mcpu"),
    ],
)
def test_a_table_that_is_none_is_an_error(profile, name, message):
    head, *tables = PROFILE.split("\n\n")
    others = [table for table in tables if name not in table.partition("]")[0]]
    text = "\n\n".join([f'{name} = "llvm"\n{head}', *others])
    with pytest.raises(SocError, match=message):
        read_profile(profile(text))


def test_an_empty_list_of_clusters_is_an_error(profile):
    head, _, _, *tables = PROFILE.split("\n\n")
    with pytest.raises(SocError, match="clusters is not a list"):
        read_profile(profile("\n\n".join([f"clusters = []\n{head}", *tables])))


@pytest.mark.parametrize(
    ("machine", "listed", "missing"),
    [
        ("aarch64", "Features : fp asimd asimdhp", ""),
        ("arm64", "Features : fp asimd asimdhp", ""),
        ("aarch64", "Features : fp asimd", "asimdhp"),
        ("aarch64", "Hardware : SDM845", ""),  # believed where the kernel says nothing
        ("x86_64", "flags : avx2", "the architecture (aarch64; it is x86_64)"),
    ],
)
def test_what_this_machine_lacks_is_named(tmp_path, monkeypatch, machine, listed, missing):
    (tmp_path / "cpuinfo").write_text(f"{listed}\n")
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("tvm_dynprune.soc.features.CPUINFO", tmp_path / "cpuinfo")
    target = {"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a75"}
    assert missing_here(target, ["asimd", "asimdhp"]) == missing


def test_a_processor_that_llvm_does_not_know_is_an_error(profile):
    soc = read_profile(profile(PROFILE.replace("cortex-a53", "cortex-z99")))
    with pytest.raises(SocError, match=r"board: LLVM \d+ knows no processor 'cortex-z99'"):
        soc.tvm_target()


def test_float16_is_for_who_computes_in_it() -> None:
    pi5 = load_soc("raspberry-pi-5")
    assert in_precision(pi5, "float32") == pi5
    assert in_precision(pi5, "float16") == dataclasses.replace(pi5, lanes=8)
    with pytest.raises(SocError, match="raspberry-pi-4 has no float16 arithmetic"):
        in_precision(load_soc("raspberry-pi-4"), "float16")
    with pytest.raises(SocError, match="precision fp16: float32 or float16"):
        in_precision(pi5, "fp16")
