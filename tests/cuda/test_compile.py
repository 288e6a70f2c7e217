"""Cubins: NVRTC makes them, folders keep them, and who else could have written there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuprover import folders
from gpuprover.cuda import build, compile
from gpuprover.cuda.compile import CUBIN_VARIABLE, Nvrtc, find_nvrtc
from gpuprover.cuda.device import Program
from gpuprover.cuda.source import VARIANTS, programs
from gpuprover.curves import BN254, CURVES, CurveParams
from gpuprover.errors import DeviceError
from gpuprover.folders import CACHE_VARIABLE
from tests.support.paths import ROOT

pytestmark = pytest.mark.kernels_offline
VECTOR = Program(BN254, "vector.cu")
SMALL = Program(BN254, "sparse.cu")
"""The quickest to compile."""


@pytest.fixture
def nvrtc() -> Nvrtc:
    found = find_nvrtc(13)
    if found is None:
        pytest.skip("the NVRTC tests need nvidia-cuda-nvrtc (pip install 'gpuprover[test]')")
    return found


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(CUBIN_VARIABLE, raising=False)
    return tmp_path / "cache"


def test_every_kernel_file_is_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    two = (("GROUP", "1"),), (("GROUP", "2"),)
    monkeypatch.setitem(VARIANTS, "vector.cu", two)
    found = [program for curve in CURVES for program in programs(curve)]
    assert {program.source for program in found} == {path.name for path in (ROOT / "kernels").glob("*.cu")}
    assert {program.defines for program in found if program.source == "vector.cu"} == set(two)
    assert len({compile.program_name(program) for program in found}) == len(found)
    assert set(VARIANTS) <= {program.source for program in found}


def test_a_cubin_is_compiled_once(nvrtc: Nvrtc, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cubin = compile.load_cubin(SMALL, "sm_90", nvrtc)
    assert cubin.startswith(b"\x7fELF")
    (path,) = cache.rglob("*.cubin")
    assert path.parent.name == "cubin-nvrtc{}.{}".format(*nvrtc.version)

    def refuse(*_: object) -> bytes:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(compile, "compile_program", refuse)
        assert compile.load_cubin(SMALL, "sm_90", nvrtc) == cubin
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:]):
        path.write_bytes(damaged)
        assert compile.load_cubin(SMALL, "sm_90", nvrtc) == cubin
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_names_change_with_all_that_goes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(program: Program = VECTOR, architecture: str = "sm_90") -> str:
        return compile.file_name(program, architecture)

    original = compile.sources
    plain = name()
    assert name(Program(CURVES[1], "vector.cu")) != plain
    assert name(Program(BN254, "vector.cu", (("GROUP", "2"),))) != plain
    assert name(architecture="sm_80") != plain

    def edited(file: str) -> Callable[[CurveParams], dict[str, str]]:
        return lambda curve: {**original(curve), file: "// edited"}

    for file, changes in (("field.cuh", True), ("vector.cu", True), ("other.cu", False)):
        monkeypatch.setattr(compile, "sources", edited(file))
        assert (name() != plain) is changes, file


def test_cubins_built_before_need_no_compiler(
    nvrtc: Nvrtc, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match=r"sparse\.cu: no cubin for sm_90.*pip install"):
        compile.load_cubin(SMALL, "sm_90", None)
    folder = tmp_path / "built"
    done: list[str] = []
    units = [(Program(curve, "sparse.cu"), "sm_90") for curve in CURVES]
    folder.mkdir()
    planted = tmp_path / "cwd"
    planted.mkdir()
    (planted / "argparse.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(planted)
    build.build(units, folder, nvrtc, processes=2, done=lambda name, seconds: done.append(name))
    assert sorted(done) == sorted(path.name for path in folder.iterdir())
    monkeypatch.setenv(CUBIN_VARIABLE, str(folder))
    assert compile.load_cubin(SMALL, "sm_90", None) == compile.compile_program(SMALL, "sm_90", nvrtc)
    build.build(units, folder, nvrtc, done=lambda *_: pytest.fail("built again"))


@pytest.mark.parametrize("where", ["the folder", "the file", "what it is in", "the cache"])
def test_cubins_that_others_could_have_written_are_not_loaded(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """One line says which, and what is made anew is taken."""
    compiler: Any = SimpleNamespace(version=(13, 0))
    monkeypatch.setattr(compile, "compile_program", lambda *_: b"compiled")
    monkeypatch.setattr(folders, "_told", set())
    folder = tmp_path / "above" / "built"
    if where == "the cache":
        folder = cache / compile.store(compiler).name
    else:
        monkeypatch.setenv(CUBIN_VARIABLE, str(folder))
    folder.mkdir(parents=True)
    path = folder / compile.file_name(SMALL, "sm_90")
    compile.write_cubin(path, b"planted")
    told: list[str] = []
    with folders.warnings_to(told.append):
        assert compile.load_cubin(SMALL, "sm_90", compiler) == b"planted"
        spoilt = {"the folder": folder, "the file": path, "what it is in": folder.parent, "the cache": path}[
            where
        ]
        spoilt.chmod(0o777)
        assert compile.load_cubin(SMALL, "sm_90", compiler) == b"compiled"
        assert compile.load_cubin(SMALL, "sm_90", compiler) == b"compiled"
    assert told == [f"compiled code is not used: {spoilt} may be written by others (mode 0777): chmod go-w"]


def test_others_may_read_what_is_built_and_not_write_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        compile.write_cubin(tmp_path / "x.cubin", b"cubin")
    finally:
        os.umask(before)
    assert (tmp_path / "x.cubin").stat().st_mode & 0o777 == 0o644


def test_a_build_can_be_stopped(nvrtc: Nvrtc, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    calls = []

    def check() -> None:
        calls.append(0)
        if len(calls) == 3:
            raise Stop

    with pytest.raises(Stop):
        build.build([(SMALL, "sm_90")], tmp_path, nvrtc, check=check)
    assert not list(tmp_path.iterdir())


def test_what_does_not_compile_is_told(nvrtc: Nvrtc) -> None:
    with pytest.raises(DeviceError, match=r"NVRTC: bad\.cu for sm_90: .*bad\.cu\(1\): error"):
        nvrtc.compile("int x = y;", "bad.cu", {}, "sm_90")
    with pytest.raises(DeviceError, match="sm_13"):
        nvrtc.compile("", "empty.cu", {}, "sm_13")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--arch", "sm_13"], 2, "--arch: expected some of sm_75, "),
        (["--arch", "sm_90", "--only", "x"], 2, "--only: expected one of msm.bn254.GROUP-2, "),
        (["--arch", "sm_90", "--jobs", "0"], 2, "--jobs: expected a whole number"),
        (["--arch", "sm_90", "--cuda", "11"], 3, "NVRTC is missing"),
        (["--arch", "sm_90", "--output", "/proc/none"], 2, "/proc/none: "),
        (["--arch", "sm_90", "--only", "sparse.bn254"], 0, ""),
    ],
)
def test_the_command(
    nvrtc: Nvrtc,
    arguments: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert build.main(["--output", str(tmp_path), *arguments]) == code
    out, err = capsys.readouterr()
    assert says in err
    assert (out == f"1 cubins in {tmp_path}\n") is (code == 0)
