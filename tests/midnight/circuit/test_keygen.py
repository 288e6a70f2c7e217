"""Keys from circuits: byte for byte those of the network's tools."""

from __future__ import annotations

import zlib
from hashlib import sha256
from pathlib import Path

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.devices import open_backend
from gpuprover.job import Job
from gpuprover.midnight.circuit import keygen
from gpuprover.midnight.encoding import tagged
from gpuprover.midnight.ir.files import read_circuit
from gpuprover.midnight.keys import read_prover_key
from gpuprover.midnight.profile import V6
from gpuprover.midnight.srs import Srs, find_srs
from tests.support.midnight import SMALL, data_folder

PINNED = {
    "prover": "5cd0a353",
    "verifier": "5c5a4fdada82495c33cc413a397b1d08fc9b85c7df6917e715ddeb2748228098",
}
"""SHA-256 of the keys of ``compact_is_odd``, which the network's own tests freeze."""


def keys_of(path: Path, parameters: Path) -> keygen.Keys:
    circuit = read_circuit(path.read_bytes(), path.name)
    srs: Srs = find_srs(keygen.size_of(circuit).k, parameters)
    return keygen.keys(circuit, srs, open_backend("cpu", BLS12_381, Job(threads=2)))


def inflated(prover: bytes) -> bytes:
    """A prover key of the older line, decompressed: compressors differ in their output."""
    _, reader = tagged(prover, V6.prover_tags, "key")
    content: bytes = zlib.decompress(reader.sized("content"), zlib.MAX_WBITS | 16)
    return content


@pytest.mark.parametrize("name", ["hello", "fallible", "increment"])
def test_keys_of_the_older_line(name: str) -> None:
    made = keys_of(SMALL / f"{name}.bzkir", SMALL)
    assert made.verifier == (SMALL / f"{name}.verifier").read_bytes()
    assert inflated(made.prover) == inflated((SMALL / f"{name}.prover").read_bytes())


def test_keys_of_the_newer_line_have_the_pinned_hashes() -> None:
    for ending in ("bzkir", "zkir"):
        made = keys_of(SMALL / f"compact_is_odd.{ending}", SMALL)
        assert sha256(made.prover).hexdigest().startswith(PINNED["prover"])
        assert sha256(made.verifier).hexdigest() == PINNED["verifier"]


def test_more_keys_of_the_newer_line() -> None:
    folder = data_folder("data08")
    for name in ("t8a", "t8c"):
        made = keys_of(folder / f"{name}.bzkir", data_folder())
        assert made.prover == (folder / f"{name}.prover").read_bytes()
        assert made.verifier == (folder / f"{name}.verifier").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t8d", "t8j"])
def test_larger_keys_of_the_newer_line(name: str) -> None:
    folder = data_folder("data08")
    made = keys_of(folder / f"{name}.bzkir", data_folder())
    assert made.prover == (folder / f"{name}.prover").read_bytes()
    assert made.verifier == (folder / f"{name}.verifier").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zswap_sign", "ledger_dust_spend"])
def test_built_in_circuits_of_the_ledger(name: str) -> None:
    folder = data_folder("keys")
    made = keys_of(folder / f"{name}.bzkir", data_folder())
    assert made.verifier == (folder / f"{name}.verifier").read_bytes()
    key = read_prover_key(made.prover, name)
    assert key.circuit == (folder / f"{name}.bzkir").read_bytes()
