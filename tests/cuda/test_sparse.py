"""Sparse products on the emulated device: every shape of row, slices that are sent and slices that stay."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from gpuprover.backend import Form
from gpuprover.cuda import sparse
from gpuprover.cuda.device import Program
from gpuprover.cuda.sparse import CHUNK, SparseMatrices
from gpuprover.curves import CURVES, CurveParams
from gpuprover.limbs import field_to_words, ints_to_words, words_to_field
from tests.support.emulator import EmulatedDevice
from tests.support.nvrtc import compile_cubin, disassemble
from tests.support.samples import unaligned

pytestmark = pytest.mark.kernels_offline

Entry = tuple[int, int, int, int]
COLUMNS = 40


def random_entries(rng: random.Random, r: int, shape: dict[tuple[int, int], int]) -> list[Entry]:
    """``shape`` says how many entries a (matrix, row) has; they stand in any order."""
    values = (0, 1, r - 1)
    entries = [
        (matrix, row, rng.randrange(COLUMNS), rng.choice((*values, *(rng.randrange(r) for _ in range(4)))))
        for (matrix, row), n in shape.items()
        for _ in range(n)
    ]
    rng.shuffle(entries)
    return entries


def check(
    curve: CurveParams,
    rng: random.Random,
    rows: int,
    entries: list[Entry],
    *,
    resident: bool,
    size: int,
    reversed: bool = False,
    form: Form = Form.DOUBLE_MONTGOMERY,
) -> list[str]:
    """Compares products with their definition -> the kernels that ran."""
    fr, count = curve.scalar, 2
    factor = {Form.CANONICAL: 1, Form.MONTGOMERY: fr.R, Form.DOUBLE_MONTGOMERY: fr.R**2}[form]
    w = [rng.choice((0, 1, fr.modulus - 1, rng.randrange(fr.modulus))) for _ in range(COLUMNS)]
    kind = np.dtype([("m", "<u4"), ("r", "<u4"), ("c", "<u4"), ("v", "<u8", (fr.limbs,))])
    array = np.zeros(len(entries), kind)
    for name, column in zip("mrc", range(3), strict=True):
        array[name] = [entry[column] for entry in entries]
    array["v"] = ints_to_words([entry[3] * factor % fr.modulus for entry in entries], fr.limbs)
    array = unaligned(array)

    device = EmulatedDevice(reversed=reversed)
    matrices = SparseMatrices(device, curve, count, rows, *(array[k] for k in "mrcv"), form, entries=size)
    partials = device.allocate(max(1, sparse.partials_bound(len(entries)) * fr.bytes))
    assert matrices.partials <= sparse.partials_bound(len(entries))
    calls: list[None] = []
    if resident:
        bound = sparse.resident_bytes(curve, count, rows, len(entries), size)
        at, staging = device.allocate(max(1, bound)), None
        assert matrices.place(at, lambda: calls.append(None)) <= bound
    else:
        staging = device.allocate(sparse.slice_bytes(curve, size))
    outs = [device.allocate(rows * fr.bytes) for _ in range(count)]
    scalars = device.allocate(COLUMNS * fr.bytes)
    device.write(scalars, ints_to_words(w, fr.limbs))
    for _ in range(2):
        matrices.multiply(scalars, COLUMNS, outs, partials, staging, lambda: calls.append(None))
        expected = [[0] * rows for _ in range(count)]
        for matrix, row, column, value in entries:
            expected[matrix][row] = (expected[matrix][row] + value * w[column]) % fr.modulus
        for out, want in zip(outs, expected, strict=True):
            got = np.empty((rows, fr.limbs), np.uint64)
            device.read(got, out)
            assert np.array_equal(got, field_to_words(fr, want)), words_to_field(fr, got)
    assert bool(calls) is bool(entries)
    return device.kernels


SHAPES: dict[str, Callable[[], tuple[int, dict[tuple[int, int], int]]]] = {
    "nothing": lambda: (3, {}),
    "one": lambda: (1, {(1, 0): 1}),
    "one matrix": lambda: (5, {(0, 4): 2, (0, 0): 1}),
    "around a chunk": lambda: (200, {(k % 2, k): CHUNK + k % 3 - 1 for k in range(0, 90, 7)}),
    "a row of two levels": lambda: (9, {(0, 3): CHUNK**2, (0, 5): CHUNK**2 + 1, (1, 5): 3, (1, 8): 70}),
    "short rows": lambda: (300, {(k % 2, k): 1 + k % 4 for k in range(0, 300, 3)}),
}


@pytest.mark.parametrize("resident", [True, False], ids=["resident", "sent"])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(curve: CurveParams, rng: random.Random, shape: str, resident: bool) -> None:
    rows, lengths = SHAPES[shape]()
    entries = random_entries(rng, curve.r, lengths)
    kernels = check(curve, rng, rows, entries, resident=resident, size=64, reversed=resident)
    assert ("add_chunks" in kernels) is any(n > CHUNK for n in lengths.values())


@pytest.mark.parametrize("form", Form)
def test_forms(curve: CurveParams, rng: random.Random, form: Form) -> None:
    entries = random_entries(rng, curve.r, {(0, 1): 3, (1, 2): 40})
    for resident in (True, False):
        check(curve, rng, 4, entries, resident=resident, size=CHUNK, form=form)


def test_entries_in_order_are_not_sorted(
    curve: CurveParams, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As circom's keys have them: constraint by constraint, both matrices."""
    entries = sorted(
        random_entries(rng, curve.r, {(k % 2, k // 3): 5 for k in range(60)}), key=lambda e: e[1]
    )
    check(curve, rng, 20, entries, resident=True, size=sparse.SLICE)
    monkeypatch.setattr(sparse.np, "argsort", lambda a, **_: 1 / 0 if len(a) > 100 else np.arange(len(a)))
    check(curve, rng, 20, entries, resident=True, size=sparse.SLICE)


def test_chunks_of_a_slice_stand_by_length(rng: random.Random) -> None:
    curve = CURVES[0]
    lengths = {(0, k): rng.randrange(1, 100) for k in range(50)}
    entries = np.array([(row, n) for (_, row), n in lengths.items()])
    row_index = np.repeat(entries[:, 0], entries[:, 1]).astype(np.uint32)
    n = len(row_index)
    matrices = SparseMatrices(
        EmulatedDevice(), curve, 1, 50, np.zeros(n, np.uint32), row_index, np.zeros(n, np.uint32),
        np.zeros((n, 4), np.uint64), Form.DOUBLE_MONTGOMERY,
    )  # fmt: skip
    for _, _, _, _, chunks in matrices._slices():
        sizes = (chunks[:, 1] - chunks[:, 0]).tolist()
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) <= CHUNK


def test_budget(curve: CurveParams, tmp_path) -> None:
    """One product an entry; no register spilled."""
    name = Program(curve, "sparse.cu").source
    from gpuprover.cuda.source import sources

    done = compile_cubin(curve, name, sources(curve)[name], "sm_90")
    opcodes = disassemble(done.cubin, tmp_path)
    for kernel, wide, registers in (("multiply_chunks", 140, 64), ("add_chunks", 8, 40)):
        found = sum(n for o, n in opcodes[kernel].items() if o.startswith(("IMAD.WIDE", "IMAD.HI")))
        report = done.kernels[kernel]
        print(f"{kernel}: {found} wide of {opcodes[kernel].total()}, {report.registers} registers")
        assert (report.spilled, report.stack) == (0, 0)
        assert found <= wide
        assert report.registers <= registers
