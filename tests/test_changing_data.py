"""Data that change after they were checked: no kernel leaves its arrays, and what is told was proved."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover.backend import Form
from gpuprover.circuits import chain_circuit
from gpuprover.cpu.combine import fixed_base, fixed_base_mul, sparse_combination
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import Field
from gpuprover.cpu.msm import Points, recode
from gpuprover.cpu.path import CpuPath, cpu_path
from gpuprover.curves import BN254, CurveParams, Group
from gpuprover.formats.wtns import read_witness
from gpuprover.job import Job, Progress
from gpuprover.limbs import g1_to_words, ints_to_words
from gpuprover.systems.groth16.key import COEFFICIENTS
from tests.conftest import OpenBackend
from tests.support.paths import VECTORS
from tests.support.samples import point_words

ONES = 0xFFFFFFFFFFFFFFFF
CHAIN = 300
"""Constraints with which the windows' width divides 256 on the portable path."""

_msm, _combine = Kernels("msm"), Kernels("combine")


@pytest.fixture(params=["ifma", "portable"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CpuPath:
    if request.param == "ifma" and cpu_path().name != "ifma":
        pytest.skip("the CPU has no AVX-512 IFMA")
    monkeypatch.setenv("PROVER_CPU_PATH", request.param)
    return cpu_path()


# Digits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [2, 4, 8, 13, 16])
def test_a_window_of_any_scalar_has_a_bucket(c: int) -> None:
    """Scalars that grew after their lengths were counted; what lies around the kernel's arrays stays."""
    n, half, windows = 50, 1 << (c - 1), -(-200 // c)
    scalars = np.full((n, 4), ONES, dtype=np.uint64)
    recoded = np.concatenate([recode(scalars, windows, c), np.full(8, ONES, np.uint64)])
    order = np.arange(n, dtype=np.uint32)
    for window in range(256 // c + 1):
        room = np.full(half + 2 + (1 << c), -7, dtype=np.int64)
        starts, entries = room[: half + 2], np.full(2 * n, 99, dtype=np.uint32)
        _msm.sort_window(
            recoded, 4, order, 0, n, c * window, c, window < windows - 1,
            starts, entries, np.empty(n, np.int32),
        )  # fmt: skip
        assert (room[half + 2 :] == -7).all()
        assert (entries[n:] == 99).all()
        assert (starts[:-1] <= n).all()


@pytest.mark.parametrize("c", [4, 8, 13])
def test_an_entry_of_any_scalar_is_in_its_table(c: int) -> None:
    n, windows = 30, -(-200 // c)
    digits = np.empty((windows, n), dtype=np.int16)
    _combine.digits(recode(np.full((n, 4), ONES, np.uint64), windows, c), 4, 0, n, c, digits)
    assert np.abs(digits.astype(int)).max() <= 1 << (c - 1)
    starts, entries = np.empty(n + 2, np.int64), np.empty(windows * n, np.uint32)
    _combine.entries(digits, 1 << (c - 1), starts, entries)
    assert (entries[: starts[n]] & 0x7FFFFFFF).max() < windows << (c - 1)


def test_scalars_of_all_bits_are_refused(path: CpuPath) -> None:
    from gpuprover.cpu.backend import CpuBackend

    for n in (1, 30, 1500):
        backend = CpuBackend(BN254, Job(threads=1))
        bases = backend.prepare_bases(Group.G1, point_words(BN254, Group.G1, [1] * n))
        with pytest.raises(gpuprover.InvalidInput, match=r"expected integers below 2\^255"):
            backend.msm(bases, np.full((n, 4), ONES, dtype=np.uint64))


def test_multiples_by_scalars_of_all_bits(path: CpuPath) -> None:
    """What comes out is wrong, but comes."""
    F, generator = Field(BN254.base), g1_to_words(BN254, [BN254.g1])
    scalars = np.full((40, 4), ONES, dtype=np.uint64)
    table = fixed_base(F, generator, 8, 254, path, Job(threads=1))
    assert len(fixed_base_mul(table, scalars, Job(threads=1))) == 40
    points = Points(F, np.repeat(generator, 40, axis=0), path)
    columns = np.arange(40, dtype=np.uint32)
    for top in (ONES, 1 << 63):
        scalars[:, 3] = top
        found = sparse_combination(points, np.arange(41), columns, scalars, BN254.r, Job(threads=1))
        assert len(found) == 40


# Indices --------------------------------------------------------------------------------------------


@pytest.mark.both_paths
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("index", range(3), ids=["matrix", "row", "column"])
def test_spmv_refuses_an_index_that_is_out_of_range(
    opened: OpenBackend, curve: CurveParams, index: int, threads: int
) -> None:
    """Of the first entry, the last one, and one between; in the order of rows and out of it."""
    n, shape = 400, (2, 100, 50)
    values, w = (ints_to_words([3] * k, curve.scalar.limbs) for k in (n, shape[2]))
    for place, turned in ((0, False), (n // 2, True), (n - 1, False), (n // 2, False)):
        rows = np.arange(n) // 4
        arrays = [np.arange(n) % 2, rows[::-1] if turned else rows, np.arange(n) % shape[2]]
        for far in (shape[index] - 1, shape[index], 1 << 16, 0xFFFFFFFF):
            columns = [a.astype(np.uint32) for a in arrays]
            columns[index][place] = far
            backend = opened(Job(threads=threads))
            if far < shape[index]:
                matrices = backend.prepare_matrices(2, shape[1], *columns, values, Form.DOUBLE_MONTGOMERY)
                backend.spmv(matrices, w)
                backend.free(matrices)
                continue
            with pytest.raises(IndexError):
                backend.spmv(
                    backend.prepare_matrices(2, shape[1], *columns, values, Form.DOUBLE_MONTGOMERY), w
                )


@pytest.mark.parametrize("value", [1, -1, 7])
def test_a_sum_refuses_a_point_that_is_not_there(path: CpuPath, value: int) -> None:
    points = Points(Field(BN254.base), point_words(BN254, Group.G1, [1, 2, 3]), path)
    values = ints_to_words([value % BN254.r] * 3, 4)
    for column in (3, 1 << 20, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
        columns = np.array([0, 1, column], dtype=np.uint32)
        with pytest.raises(IndexError):
            sparse_combination(points, np.array([0, 3]), columns, values, BN254.r, Job(threads=1))


# Proofs ---------------------------------------------------------------------------------------------


def _records(data: bytes) -> int:
    """Where the coefficients' records begin."""
    at = 12
    for _ in range(struct.unpack_from("<I", data, 8)[0]):
        kind, size = struct.unpack_from("<IQ", data, at)
        if kind == COEFFICIENTS:
            return at + 16
        at += 12 + size
    raise AssertionError("no coefficients")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("part", range(3), ids=["matrix", "constraint", "signal"])
def test_a_key_that_is_written_to_is_refused(
    tmp_path: Path, curve: CurveParams, path: CpuPath, part: int, threads: int
) -> None:
    data = (VECTORS / f"chain5.{curve.name}.zkey").read_bytes()
    for far in (0x1000, 0x7FFFFF00, 0xFFFFFFFF):
        file = tmp_path / f"{far}.zkey"
        file.write_bytes(data)
        key = gpuprover.load_key(file)
        with file.open("r+b") as out:
            out.seek(_records(data) + 4 * part)
            out.write(struct.pack("<I", far))
        with pytest.raises(gpuprover.MalformedFile, match=r"coefficients.*since it was loaded"):
            gpuprover.prove(key, VECTORS / f"chain5.{curve.name}.wtns", threads=threads)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[gpuprover.ProvingKey, Path]:
    folder = tmp_path_factory.mktemp("changing")
    chain_circuit(CHAIN).write(folder / "c.r1cs", folder / "c.wtns")
    gpuprover.setup(folder / "c.r1cs", folder / "c.zkey", insecure=True)
    return gpuprover.load_key(folder / "c.zkey"), folder / "c.wtns"


def _in_place(array: np.ndarray[Any, Any], file: Path) -> dict[str, tuple[Any, Callable[[], None]]]:
    """Kinds of witnesses, and how each is overwritten."""
    size = file.stat().st_size
    content = bytearray(file.read_bytes())

    def overwrite() -> None:
        with file.open("r+b") as out:
            out.seek(size - array.nbytes + 32)
            out.write(b"\xff" * (array.nbytes - 32))

    def fill() -> None:
        content[size - array.nbytes + 32 :] = b"\xff" * (array.nbytes - 32)

    def flood() -> None:
        array[1:] = ONES

    return {"array": (array, flood), "file": (file, overwrite), "bytearray": (content, fill)}


@pytest.mark.parametrize("kind", ["array", "file", "bytearray"])
@pytest.mark.parametrize("phase", ["constraints", "quotient", "msm", "blinding", "verify"])
def test_a_witness_that_changes_is_the_one_that_was_checked(
    tmp_path: Path, chain: tuple[gpuprover.ProvingKey, Path], path: CpuPath, phase: str, kind: str
) -> None:
    """Whenever it changes: the proof is the one of the values that were checked, and so are its signals."""
    key, wtns = chain
    file = tmp_path / "w.wtns"
    file.write_bytes(wtns.read_bytes())
    values = np.array(read_witness(wtns).values)
    source, overwrite = _in_place(values, file)[kind]

    def change(progress: Progress) -> None:
        if progress.phase == phase:
            overwrite()

    result = gpuprover.prove(key, source, progress=change, threads=1)
    public = read_witness(wtns).values[1 : key.n_public + 1]
    assert result.public_signals == [str(int.from_bytes(row.tobytes(), "little")) for row in public]
    assert gpuprover.verify(key.vk, result.public_signals, result.proof)
    with pytest.raises(gpuprover.ProverError):  # by now it is another one
        gpuprover.prove(key, source)
