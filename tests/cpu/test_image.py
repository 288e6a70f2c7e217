"""Images of compiled kernels: the verifier's suite runs on them without Numba, and no wrong image is used."""

from __future__ import annotations

import ctypes
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llvmlite import binding
from numba import typeof

from gpuprover import folders, processes
from gpuprover.cpu import bake, compiled, image
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.kernels import curve as curve_kernels
from gpuprover.cpu.layout import Field, LaneField
from gpuprover.cpu.path import PATHS, cpu_path
from gpuprover.cpu.sources import store
from gpuprover.curves import BN254, CURVES, CurveParams
from gpuprover.folders import CACHE_VARIABLE
from gpuprover.systems.groth16.documents import proof_to_json, verification_key_to_json
from gpuprover.verifier import serve
from tests.support.paths import ROOT, VECTORS
from tests.systems.groth16.test_verifier import simulator, statements

pytestmark = pytest.mark.skipif(image.machine() is None, reason="no images on this machine")


@pytest.fixture(scope="module", params=PATHS)
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """A process's environment in which every curve has an image, on either path."""
    if request.param == "ifma" and cpu_path().name != "ifma":
        pytest.skip("this CPU has no AVX-512 IFMA")
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    if request.param != cpu_path().name:
        settings["PROVER_CPU_PATH"] = request.param
    subprocess.run([sys.executable, "-m", "gpuprover.cpu.bake"], env=settings, check=True, timeout=250)
    return settings


@pytest.fixture(scope="module")
def made() -> Path:
    """The image of BN254 for the path that this process takes."""
    bake.bake_missing(BN254)
    name, folder = image.image_name(BN254), store().folder
    assert name is not None
    assert folder is not None
    return folder / name


@pytest.fixture
def copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of an image, which is looked for there."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    path = tmp_path / store().name / made.name
    path.parent.mkdir(mode=0o700)
    path.write_bytes(made.read_bytes())
    path.chmod(0o600)
    monkeypatch.setattr(folders, "_told", set())
    return path


# Verification -------------------------------------------------------------------------------


SUITES = ("tests/systems/groth16/test_verifier.py", "tests/test_backend.py")
SELECTION = "cpu- and not plan and (point or pairing or linear_combination or msm_sizes)"


@pytest.mark.parametrize(
    ("selection", "tests"),
    [
        (f"{SELECTION} and bn254 or bls12-381 and pairing and {SELECTION}", 40),
        pytest.param(f"test_verifier or {SELECTION}", 90, marks=pytest.mark.slow),
    ],
    ids=["some", "all"],
)
def test_suites_pass_without_numba(environment: dict[str, str], selection: str, tests: int) -> None:
    """Both curves; an import of Numba would fail (support/image_only.py)."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.support.image_only",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
    ]
    ran = subprocess.run(
        [*command, *SUITES, "-k", selection],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > tests


PROGRAM = """
import json, sys
from gpuprover.devices import use_images
from gpuprover.curves import curve_by_name
key, public, proof = json.load(sys.stdin)
used = use_images([curve_by_name(sys.argv[1])])
from gpuprover import api
holds = sum(api.verify(key, public, proof) for _ in range(999))
public[0] = str(int(public[0]) + 1)
wrong = api.verify(key, public, proof)
private = sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private"))
heavy = [name for name in ("numba", "llvmlite") if name in sys.modules]
print(json.dumps([used, holds, wrong, private // 1024, heavy]))
"""


def test_a_process_that_verifies_is_small(made: Path, rng: random.Random) -> None:
    """1,000 verifications in under 100 MB that are the process's own."""
    curve = BN254
    s = simulator(curve, rng, 2)
    ((public, proof),) = statements(s, rng, 1)
    document = [verification_key_to_json(s.key()), list(map(str, public)), proof_to_json(proof, curve)]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, curve.name],
        input=json.dumps(document), capture_output=True, text=True, check=True, timeout=250,
    )  # fmt: skip
    used, holds, wrong, private, heavy = json.loads(ran.stdout)
    assert (used, holds, wrong, heavy) == (True, 999, False, [])
    assert private < 100


COMMAND = """
import sys
from gpuprover.cli import main
sys.argv = ["gpuprover", *sys.argv[1:]]
code = main()
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
NOT_LOADED = {
    *("numba", "llvmlite", "wasmtime", "rich", "asyncio", "cupy"),
    *("gpuprover.calibration", "gpuprover.scheduler", "gpuprover.engine", "gpuprover.workers"),
    *("gpuprover.verifier.client", "gpuprover.service", "gpuprover.witness", "gpuprover.naive"),
    *("gpuprover.reference", "gpuprover.keccak", "gpuprover.plonkish", "gpuprover.systems.plonk"),
    *("gpuprover.systems.fflonk", "gpuprover.systems.groth16.setup", "gpuprover.cpu.kernels"),
    *("gpuprover.cuda.backend", "gpuprover.cuda.cupy_device"),
}


def test_commands_run_on_images(made: Path, tmp_path: Path) -> None:
    """Those that prove and verify import no compiler, and of this package what they use: imports are most of
    a small proof's time."""
    stem, outputs = VECTORS / "chain5.bn254", [tmp_path / "p.json", tmp_path / "s.json"]
    job = f"prove --zkey {stem}.zkey --witness {stem}.wtns --proof {outputs[0]} --public {outputs[1]}\n"
    for command, given in (
        (["prove", f"{stem}.zkey", f"{stem}.wtns", *outputs], ""),
        (["verify", f"{stem}.vkey.json", *reversed(outputs)], ""),
        (["worker"], job),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", COMMAND, *map(str, command)],
            input=given, capture_output=True, text=True, timeout=250,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert not NOT_LOADED & set(ran.stderr.splitlines()[-1].split())


PROOF = """
import sys
from gpuprover.devices import use_images
assert use_images()
sys.modules["numba"] = sys.modules["llvmlite"] = None
from gpuprover import api
r1cs, wtns, zkey = sys.argv[1:]
api.setup(r1cs, zkey, insecure=True)
api.prove(zkey, wtns, threads=2)  # and verifies
"""


def test_setup_and_proof_without_numba(
    environment: dict[str, str], curve: CurveParams, tmp_path: Path
) -> None:
    stem = VECTORS / f"chain5.{curve.name}"
    files = [f"{stem}.r1cs", f"{stem}.wtns", str(tmp_path / "key.zkey")]
    ran = subprocess.run(
        [sys.executable, "-c", PROOF, *files], env=environment, capture_output=True, text=True, timeout=250
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


# Images that are not used ---------------------------------------------------------------------


def test_a_good_image(copy: Path) -> None:
    found = image.open_image(BN254)
    assert found is not None
    assert "pairing.miller_loop" in found.functions


def _flipped(position: Callable[[int], int]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position(len(data))] ^= 1
        path.write_bytes(data)

    return damage


def _another(**items: object) -> Callable[[Path], None]:
    """The same code with another index, packed as it should be."""

    def change(path: Path) -> None:
        data = path.read_bytes()
        _, _, length, start = image.HEADER.unpack_from(data)
        index = json.loads(data[image.HEADER.size :][:length])
        path.write_bytes(image.pack({**index, **items}, data[start:]))

    return change


def _linked(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


def _without(item: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = path.read_bytes()
        _, _, length, start = image.HEADER.unpack_from(data)
        index = json.loads(data[image.HEADER.size :][:length])
        del index[item]
        path.write_bytes(image.pack(index, data[start:]))

    return change


ENTRY = ["pairing.miller_loop", ["int64"], "none"]
CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing there": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: os.truncate(path, path.stat().st_size // 2),
    "only a header": lambda path: os.truncate(path, image.HEADER.size + 1),
    "too large": lambda path: os.truncate(path, image.LARGEST + 1),
    "another form": _flipped(lambda size: 0),
    "another checksum": _flipped(lambda size: len(image.MAGIC)),
    "another index": _flipped(lambda size: image.HEADER.size + 5),
    "another byte of code": _flipped(lambda size: size - 100),
    "of other sources": _another(sources="0" * 16),
    "for another CPU": _another(machine="0" * 16),
    "for another curve": _another(curve="bls12-381"),
    "an entry before the code": _another(kernels=[[*ENTRY, -1]]),
    "an entry behind the code": _another(kernels=[[*ENTRY, 1 << 26]]),
    "an entry with a strange result": _another(kernels=[[ENTRY[0], ["int64"], "float64", 0]]),
    "an entry with a strange argument": _another(kernels=[[ENTRY[0], ["complex"], "none", 0]]),
    "an entry of three parts": _another(kernels=[ENTRY]),
    "no kernels": _without("kernels"),
    "no sources": _without("sources"),
    "a link": _linked,
    "others may write it": lambda path: path.chmod(0o622),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_image_that_is_not_right_is_not_used(copy: Path, change: str) -> None:
    """One line names it, where it is there."""
    CHANGES[change](copy)
    told: list[str] = []
    with folders.warnings_to(told.append):
        assert image.open_image(BN254) is None
        assert not image.use([BN254])
    assert image.used_features() is None
    assert [copy.name in text for text in told] == [True] * (change != "nothing there")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_another_users_image_is_not_used(copy: Path) -> None:
    os.chown(copy, 12345, -1)
    assert image.open_image(BN254) is None


def test_what_images_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each curve and each setting of the path, and none on other systems."""
    paths = set()
    for setting in ("", *PATHS):
        monkeypatch.setenv("PROVER_CPU_PATH", setting)
        paths |= {image.image_name(curve) for curve in CURVES}
    assert len(paths) == 3 * len(CURVES)
    monkeypatch.setattr(image, "machine", lambda: None)
    assert image.image_name(BN254) is None
    assert not bake.bake(BN254)


# Calls ------------------------------------------------------------------------------------------


READ_ONLY = np.zeros(3, dtype=np.uint64)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    "value",
    [
        0, -(1 << 63), (1 << 63) - 1, True, np.int64(5), np.uint64(5),
        Field(BN254.base), Field(BN254.base, 2), LaneField(BN254.scalar),
        np.zeros(3, dtype=np.uint8), np.zeros((2, 3), dtype=np.int16), np.zeros((0, 4), dtype=np.uint64),
        np.zeros((2, 3, 4), dtype=np.uint32), np.zeros((4, 1), dtype=np.int64),
    ],
    ids=image.kind_of,
)  # fmt: skip
def test_kinds_are_numbas_types(value: Any) -> None:
    import gpuprover.cpu.kernels.lanes  # noqa: F401 (gives fields of lanes their types)

    assert image.kind_of(value) == bake._kind(typeof(value)) != ""


@pytest.mark.parametrize(
    "value",
    [
        1 << 63, 1.5, "text", None, READ_ONLY, np.zeros((4, 4), dtype=np.uint64)[:, 1],
        np.zeros((4, 4), dtype=np.uint64).T[1:], np.zeros(3, dtype=">u8"),
    ],
    ids=str,
)  # fmt: skip
def test_what_no_image_takes(value: Any) -> None:
    assert not image.callable_kinds([image.kind_of(value)], "none")


def test_other_kinds_of_arguments_go_to_numba(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same results for arguments that the image knows, and for others."""
    found = image.open_image(BN254)
    assert found is not None
    asked = []
    monkeypatch.setattr(image, "_used", {BN254.name: found})
    monkeypatch.setattr(
        compiled, "dispatcher", lambda name: asked.append(name) or curve_kernels.first_off_curve
    )
    kernels = Kernels("curve")
    point = np.array([[5] * 8], dtype=np.uint64)
    start = point.ctypes.data
    assert kernels.first_off_curve(Field(BN254.base), start, start, 0, 1) == 0
    assert kernels.first_off_curve(Field(BN254.base), start, start, 0, 0) == -1
    assert not asked
    assert kernels.first_off_curve(Field(BN254.base), start, start, np.int32(0), 1) == 0
    assert asked == ["curve.first_off_curve"]


def test_what_a_kernel_gets_of_an_array() -> None:
    """Looked up while it lives; another one at its place is another one."""
    a = np.zeros((2, 3), dtype=np.uint32)
    for _ in range(2):
        kinds, flat = image.described([a, 5, True, Field(BN254.base, 2), np.uint64(7), 1 << 63, "x"])
        assert kinds == (
            *(image.kind_of(v) for v in (a, 5, True, Field(BN254.base, 2), np.uint64(7))),
            "",
            "",
        )
        assert flat == [None, None, 6, 4, a.ctypes.data, 2, 3, 12, 4, 5, 1, None, 7, 1 << 63, None]
    number = id(a)
    assert number in image._described
    del a
    assert number not in image._described
    seen = set()
    for n in range(1, 50):
        b = np.zeros(n, dtype=np.int64)
        assert image.described([b])[1][2:4] == [n, 8]
        seen.add(id(b))
    assert len(seen) < 49, "places are used again"


def test_a_kernel_that_fails() -> None:
    prototype = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    codes = prototype(lambda result, exception, code: code)
    place = ctypes.cast(codes, ctypes.c_void_p).value
    assert place is not None
    function = image.Function("some.kernel", ["int64"], "none", place)
    assert function([0]) is None
    with pytest.raises(RuntimeError, match=r"some\.kernel failed with status 1"):
        function([1])


def test_another_numba_makes_no_image(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(call: compiled.Call) -> None:
        raise AttributeError("'Library' object has no attribute '_private'")

    monkeypatch.setattr(bake, "_compiled", missing)
    before = made.stat().st_mtime_ns
    with pytest.raises(bake.BakeError, match=r"no image of bn254 with this version of Numba: .*_private"):
        bake.bake(BN254)
    assert made.stat().st_mtime_ns == before


# Baking -----------------------------------------------------------------------------------------


def _object(text: str) -> bytes:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(reloc="pic", codemodel="small")
    return bytes(machine.emit_object(binding.parse_assembly(text)))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("declare void @malloc()\ndefine void @f() { call void @malloc() ret void }", "relocated: 'malloc'"),
        ("@n = global i64 5\ndefine i64 @f() { %v = load i64, ptr @n ret i64 %v }", "memory of its own"),
        (
            "@n = hidden global i64 0\ndefine i64 @f() { %v = load i64, ptr @n ret i64 %v }",
            "memory of its own",
        ),
        ("@p = hidden constant ptr @f\ndefine ptr @f() { ret ptr @p }", "memory of its own"),
    ],
)
def test_code_that_needs_more_than_itself_is_refused(text: str, problem: str) -> None:
    with pytest.raises(bake.BakeError, match=problem):
        bake.linked(_object(text))


def test_code_and_constants_are_laid_out() -> None:
    """Two functions, of which one calls the other, and a table: as they are mapped."""
    code, symbols = bake.linked(
        _object(
            "@t = hidden constant [4 x i64] [i64 2, i64 3, i64 5, i64 7]\n"
            "define hidden i64 @prime(i64 %i) noinline {\n"
            "%p = getelementptr [4 x i64], ptr @t, i64 0, i64 %i %v = load i64, ptr %p ret i64 %v }\n"
            "define hidden i64 @square(i64 %i) {\n"
            "%v = call i64 @prime(i64 %i) %s = mul i64 %v, %v ret i64 %s }"
        )
    )
    assert set(symbols) == {"prime", "square", "t"}
    assert [int.from_bytes(code[symbols["t"] :][8 * i : 8 * i + 8], "little") for i in range(4)] == [
        2,
        3,
        5,
        7,
    ]
    memory = image.mmap.mmap(
        -1, len(code), prot=image.mmap.PROT_READ | image.mmap.PROT_WRITE | image.mmap.PROT_EXEC
    )
    memory.write(code)
    place = np.frombuffer(memory, dtype=np.uint8).ctypes.data + symbols["square"]
    square = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(place)
    assert [square(i) for i in range(4)] == [4, 9, 25, 49]


def test_a_verifier_that_had_to_compile_sees_to_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process, of which nothing is left."""
    children = []
    real = processes.spawn

    def spawn(*command: str) -> processes.Child:
        children.append(real(*command))
        return children[-1]

    monkeypatch.setattr(processes, "spawn", spawn)
    monkeypatch.setattr(serve, "IMAGES_AFTER", 0.0)
    serve._make_images()
    (child,) = children
    assert child.ended()
    assert child._output == -1
    assert all(image.open_image(curve) is not None for curve in CURVES)
