"""Midnight's files for tests: small ones that the repository has, and the larger ones of the test data."""

from __future__ import annotations

import json
import lzma
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.paths import VECTORS

SMALL = VECTORS / "midnight"
"""hello, fallible, increment (line 0.7); compact_is_odd, t8c (line 0.8, without prover keys); SRS files."""


def data_folder(name: str = "data") -> Path:
    """The folder ``data``, ``keys`` or ``data08`` of the test data; the test skips without it."""
    data = os.environ.get("GPUPROVER_TEST_DATA")
    if not data:
        pytest.skip("GPUPROVER_TEST_DATA names no folder with other tools' files")
    found = Path(data).parent / "midnight" / name
    if not found.is_dir():
        pytest.skip("the test data have no Midnight files")
    return found


def public_inputs(path: Path) -> list[int]:
    """A ``.pis.json``: a list of decimal strings, or an object that has one."""
    document = json.loads(path.read_text())
    values = (
        document if isinstance(document, list) else next(v for v in document.values() if isinstance(v, list))
    )
    return [int(value) for value in values]


def advice_table(path: Path) -> tuple[int, np.ndarray]:
    """A ``.advice.bin.xz`` -> (k, canonical uint64[columns, usable rows, 4])."""
    content = lzma.decompress(path.read_bytes())
    assert content[:8] == b"MNADVv1\n"
    k, columns, usable, n = np.frombuffer(content, "<u4", 4, 8).tolist()
    assert n == 1 << k
    return k, np.frombuffer(content, "<u8", offset=24).reshape(columns, usable, 4)
