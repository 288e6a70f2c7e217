"""Advice tables as files."""

from __future__ import annotations

import lzma
from pathlib import Path

import numpy as np
import pytest

from gpuprover.curves import BLS12_381
from gpuprover.errors import InvalidInput, MalformedFile
from gpuprover.job import Job
from gpuprover.midnight.advice import Advice, AdviceSource, read_advice, write_advice
from tests.support.paths import VECTORS

FILES = sorted((VECTORS / "midnight").glob("*.advice.bin.xz"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.split(".")[0])
def test_tables_of_the_official_prover_are_read_and_written(path: Path) -> None:
    packed = path.read_bytes()
    plain = lzma.decompress(packed)
    for data in (packed, plain):
        found = read_advice(data, "a")
        assert write_advice(found) == plain
        assert found.columns.shape[1:] == (1 << found.k, 4)
        assert not found.columns[:, found.usable :].any()
        assert found.columns[:, : found.usable].any()
        assert "columns" not in repr(found)


def table() -> bytes:
    columns = np.zeros((2, 8, 4), dtype=np.uint64)
    columns[:, :5, 0] = 7
    return write_advice(Advice(3, 5, columns))


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "expected an advice table"),
        (b"midnight:proof-preimage:", "expected an advice table"),
        (table()[:20], "header: truncated"),
        (table()[:-1], "values: expected 344 bytes for 2 columns of 5 rows, found 343"),
        (table() + b"\0", "found 345"),
        (lzma.compress(table() + bytes(1000)), "found more"),
        (lzma.compress(table())[:60], r"found \d+|damaged data"),
        (b"\xfd7zXZ\0" + bytes(80), "compression: expected a stream of xz"),
        (table()[:8] + bytes([40]) + table()[9:], "expected k from 1 to 25"),
        (table()[:12] + bytes([200]) + table()[13:], "expected 1 to 64 columns"),
        (table()[:16] + bytes([8]) + table()[17:], "usable rows below n"),
        (table()[:-32] + BLS12_381.r.to_bytes(32, "little"), "column 1, row 4: not below the prime"),
    ],
)
def test_damaged_tables_are_one_line(data: bytes, problem: str) -> None:
    with pytest.raises(MalformedFile, match=problem) as caught:
        read_advice(data, "table.bin")
    assert caught.value.message.startswith("table.bin: ")
    assert caught.value.role == "witness"


def test_a_table_proves_in_this_process_only() -> None:
    source = AdviceSource(read_advice(table()), [1])
    assert source.owned(lambda: BLS12_381, content=True) is source
    with pytest.raises(InvalidInput, match="an advice table goes to no other process"):
        source.packed()
    with pytest.raises(InvalidInput, match="expected the values of a circuit's wires"):
        source.load(BLS12_381, Job(), None, np.empty)
