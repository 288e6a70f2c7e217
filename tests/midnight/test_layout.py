"""Circuits as tables: every cell of fixed columns, copies and advice as the network has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gpuprover.curves import BLS12_381
from gpuprover.errors import UnsupportedFile
from gpuprover.limbs import field_to_words, words_to_ints
from gpuprover.midnight.circuit.keygen import size_of
from gpuprover.midnight.circuit.synthesis import layout_of
from gpuprover.midnight.circuit.table import advice
from gpuprover.midnight.ir.files import read_circuit
from gpuprover.midnight.ir.run import run
from gpuprover.midnight.keys import read_prover_key
from gpuprover.midnight.preimage import read_preimage
from tests.support.midnight import SMALL, advice_table, data_folder

FAST = ["hello", "fallible", "increment", "licstatus", "t8a", "t8c", "t8d", "compact_is_odd"]
"""Circuits of a second or less."""
LONGER = [
    *("note", "deactivate", "zsign", "addservice", "addvm", "schnorr"),
    *("t000", "t011", "t100", "t110", "tmbl", "t8j"),
]
ALL = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in LONGER)]


def place_of(name: str, suffix: str) -> Path:
    """A file of a sample: in the repository, or in the test data."""
    if (SMALL / f"{name}{suffix}").is_file():
        return SMALL / f"{name}{suffix}"
    for part in ("data", "keys", "data08"):
        found = data_folder(part) / f"{name}{suffix}"
        if found.is_file():
            return found
    pytest.skip(f"there is no {name}{suffix}")


def montgomery(words: np.ndarray) -> np.ndarray:
    values = words_to_ints(words.reshape(-1, 4))
    return np.array(field_to_words(BLS12_381.scalar, values)).reshape(words.shape)


@pytest.mark.parametrize("name", ALL)
def test_fixed_columns_and_copies(name: str) -> None:
    path = place_of(name, ".prover")
    key = read_prover_key(path.read_bytes(), name)
    circuit = read_circuit(key.circuit, name)
    assert size_of(circuit) == (key.k, key.max_bit_len)
    layout = layout_of(circuit, key.k, key.max_bit_len)
    for what, own, official in (("F", layout.fixed, key.fixed), ("S", layout.sigma, key.permutation)):
        assert own.shape == official.shape
        for i, column in enumerate(own):
            differing = np.flatnonzero((montgomery(column) != official[i]).any(axis=1))
            assert not len(differing), f"{what}{i}, row {differing[0]}"


@pytest.mark.parametrize("name", ALL)
def test_advice(name: str) -> None:
    circuit = read_circuit(place_of(name, ".bzkir").read_bytes(), name)
    k, official = advice_table(place_of(name, ".advice.bin.xz"))
    layout = layout_of(circuit, *size_of(circuit))
    assert layout.k == k
    preimage = read_preimage(place_of(name, ".preimage").read_bytes(), name)
    execution = run(circuit, preimage)
    own = advice(layout, execution.inputs)
    assert not own[:, official.shape[1] :].any()
    for i, column in enumerate(official):
        differing = np.flatnonzero((own[i, : len(column)] != column).any(axis=1))
        assert not len(differing), f"A{i}, row {differing[0]}"


def test_too_few_rows_are_refused() -> None:
    circuit = read_circuit(place_of("hello", ".bzkir").read_bytes(), "hello")
    with pytest.raises(UnsupportedFile, match=r"hello: circuit: expected at most 2\^5 rows, found more"):
        layout_of(circuit, 5, 8)


def test_layouts_are_kept() -> None:
    data = place_of("hello", ".bzkir").read_bytes()
    first, second = (layout_of(read_circuit(data, name), 6, 8) for name in ("one", "two"))
    assert first is second
