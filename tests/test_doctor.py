# SPDX-License-Identifier: Apache-2.0
"""`doctor` finds what is missing, says what to install, and never falls over itself."""

import sys
from pathlib import Path

import pytest

from tvm_dynprune import doctor
from tvm_dynprune.doctor import Check, run_doctor

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def pretend(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name, real(name)))


def test_this_machine_is_well():
    checks = run_doctor()
    assert [check for check in checks if not check.ok] == []
    assert len({check.name for check in checks}) == len(checks)
    assert all("\n" not in check.detail + check.advice for check in checks)


def test_versions_are_those_that_the_project_pins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"apache-tvm[popen-pool,rpc]=={doctor.TVM_VERSION}" in project["dependencies"]
    ffi = next(line for line in project["dependencies"] if line.startswith("apache-tvm-ffi"))
    assert ffi in doctor.FFI_ADVICE
    pins = (ROOT / "constraints.txt").read_text()
    assert f"apache-tvm-ffi=={doctor.FFI_SERIES}" in pins


@pytest.mark.parametrize("found", ["0.1.15", "0.1.15.post2", "0.1.13.post3", "0.1.140"])
def test_another_ffi_series_is_named_with_the_one_to_install(monkeypatch, found):
    pretend(monkeypatch, {"apache-tvm-ffi": found})
    check = doctor.check_ffi()
    assert not check.ok
    assert found in check.detail
    assert "<0.1.15" in check.advice


@pytest.mark.parametrize(
    ("package", "check"),
    [
        ("apache-tvm", doctor.check_tvm),
        ("apache-tvm-ffi", doctor.check_ffi),
    ],
)
def test_a_missing_package_is_a_failure_with_advice(monkeypatch, package, check):
    pretend(monkeypatch, {package: None})
    assert check() == Check(check().name, False, "not installed", check().advice)
    assert check().advice.startswith("pip install")


def test_optional_packages_may_be_missing(monkeypatch):
    pretend(monkeypatch, {"torch": None, "xgboost": None, "xgboost-cpu": None})
    for check in (doctor.check_torch(), doctor.check_xgboost()):
        assert check.ok
        assert "needed only" in check.detail
        assert "tvm-dynprune[" in check.advice


def test_reports_even_when_tvm_cannot_be_imported(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tvm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tvm", None)
    checks = {check.name: check for check in run_doctor()}
    assert not checks["TVM loads"].ok
    assert not checks["processor"].ok
    assert checks["C++ compiler"].ok


def test_no_compiler_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    check = doctor.check_compiler()
    assert not check.ok
    assert "apt install g++" in check.advice


@pytest.mark.parametrize("compiler", ["/nowhere/c++", "false"])
def test_a_compiler_that_does_not_link_is_no_compiler(monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    check = doctor.check_compiler()
    assert not check.ok
    assert compiler in check.detail


def test_missing_package_data_is_reported(monkeypatch):
    def nowhere(folder: str) -> Path:
        raise FileNotFoundError(f"{folder}: looked in /a, /b")

    monkeypatch.setattr(doctor, "shipped", nowhere)
    assert doctor.check_data() == Check(
        "package data", False, "schedules: looked in /a, /b", "reinstall tvm-dynprune"
    )


def test_an_unwritable_temporary_folder_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.tempfile, "tempdir", str(tmp_path / "gone"))
    check = doctor.check_temporary()
    assert not check.ok
    assert "TMPDIR" in check.advice
