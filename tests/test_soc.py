# SPDX-License-Identifier: Apache-2.0
"""SoC profiles: those that ship, the machine itself, and files that are wrong."""

import dataclasses
from pathlib import Path

import pytest
import tvm
from tvm.target import codegen

from tvm_dynprune.errors import SocError
from tvm_dynprune.soc import (
    Cost,
    Soc,
    count_cores,
    detect_host,
    hidden_x86_features,
    list_socs,
    load_soc,
    read_caches,
    read_profile,
)

SHIPPED = [
    "aarch64-generic",
    "android-generic",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "x86-avx2",
    "x86-avx512",
]
PROFILE = """\
description = "a board"
cores = 2
lanes = 4
vector_registers = 32
l1d_kib = 32
l2_kib = 512
l3_kib = 0

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
        2,
        4,
        32,
        l1d_kib=32,
        l2_kib=512,
        l3_kib=0,
        cost=Cost(2.0, 8.0, 1.0, 4.0, 16.0),
    )


def test_a_soc_does_not_change(profile):
    soc = read_profile(profile(PROFILE))
    with pytest.raises(dataclasses.FrozenInstanceError):
        soc.cores = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cores = 2", "cores = 2\ncolour = 1", r"board\.toml: unknown key colour; known are desc"),
        (
            "mcpu",
            "mcpus",
            r"board\.toml: unknown key target\.mcpus; known are mtriple, mcpu, mattr",
        ),
        ("lanes = 4\n", "", r"board\.toml: missing key lanes"),
        ('mcpu = "cortex-a53"', "", r"board\.toml: missing key target\.mcpu"),
        ("cores = 2", "cores = 0", r"cores = 0 is not a positive whole number"),
        ("cores = 2", "cores = true", r"cores = True is not a positive whole number"),
        ("l2_kib = 512", "l2_kib = 0.5", r"l2_kib = 0\.5 is not a positive whole number"),
        ('"a board"', "7", r"description = 7 is not a text"),
        ('mcpu = "cortex-a53"', 'mcpu = ["a"]', r"target\.mcpu = \['a'\] is not a str"),
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


@pytest.mark.parametrize("name", ["target", "cost"])
def test_a_table_that_is_none_is_an_error(profile, name):
    head, target, cost = PROFILE.split("\n\n")
    others = {"target": target, "cost": cost}
    del others[name]
    text = "\n\n".join([f'{name} = "llvm"\n{head}', *others.values()])
    with pytest.raises(SocError, match=f"{name} is not a table"):
        read_profile(profile(text))


def test_a_processor_that_llvm_does_not_know_is_an_error(profile):
    soc = read_profile(profile(PROFILE.replace("cortex-a53", "cortex-z99")))
    with pytest.raises(SocError, match=r"board: LLVM \d+ knows no processor 'cortex-z99'"):
        soc.tvm_target()
