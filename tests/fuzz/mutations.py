"""Damage done to real files: what hypothesis and atheris both draw from, and what has to come of it.

A mutation is a name and two integers, so that any fuzzer can make one; every pair of
integers means something for every file.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from gpuprover.curves import BLS12_381, CURVES  # noqa: E402
from gpuprover.errors import MAX_MESSAGE, ProverError, UnsupportedFile  # noqa: E402
from gpuprover.formats.json_files import parse_json  # noqa: E402
from gpuprover.formats.ptau import read_ptau  # noqa: E402
from gpuprover.formats.r1cs import read_r1cs  # noqa: E402
from gpuprover.formats.snarkjs_json import parse_public_signals  # noqa: E402
from gpuprover.formats.wtns import read_witness  # noqa: E402
from gpuprover.limbs import first_not_below  # noqa: E402
from gpuprover.midnight import envelopes, keys, preimage, srs  # noqa: E402
from gpuprover.midnight.encoding import Writer, tagged  # noqa: E402
from gpuprover.midnight.ir.failure import FailedCheck  # noqa: E402
from gpuprover.midnight.ir.files import (  # noqa: E402
    architecture_of,
    circuit_document,
    n_public,
    read_circuit,
    write_circuit,
)
from gpuprover.midnight.ir.run import run  # noqa: E402
from gpuprover.midnight.preimage import read_preimage  # noqa: E402
from gpuprover.systems.fflonk import record as fflonk  # noqa: E402
from gpuprover.systems.groth16 import record as groth16  # noqa: E402
from gpuprover.systems.groth16.key import load_key  # noqa: E402
from gpuprover.systems.plonk import record as plonk  # noqa: E402
from gpuprover.systems.system import ProofSystem  # noqa: E402
from tests.support.containers import Sections, pack, unpack  # noqa: E402
from tests.support.plonk import Sample, sample  # noqa: E402

VECTORS = HERE.parent / "vectors"
BINARY = ("wtns", "r1cs", "ptau", "zkey", "initial.zkey")
JSON = ("vkey.json", "proof.json", "public.json")


def _of_gates(curve: str, found: Sample) -> dict[str, bytes]:
    """The files of PLONK and FFLONK by name; they name their protocol."""
    start = f"{curve}.{found.protocol}"
    return {
        f"{start}.zkey": found.key.read_bytes(),
        f"{start}.vkey.json": found.verification_key_text.encode(),
        f"{start}.proof.json": found.proof_text.encode(),
    }


GATES: dict[str, bytes] = {
    **_of_gates("bn254", sample("duplicates", "plonk")),
    **_of_gates("bls12-381", sample("bls-small", "plonk")),
    **_of_gates("bn254", sample("duplicates", "fflonk")),
}
"""Name -> content of files of PLONK and FFLONK."""
CIRCUITS: dict[str, bytes] = {
    f"midnight.{path.name}": path.read_bytes()
    for kind in ("bzkir", "zkir")
    for path in sorted((VECTORS / "midnight").glob(f"*.{kind}"))
}
"""Name -> content of circuits of both versions of ZKIR."""
_PROVER_TAG = "prover-key[v7](ir-source[v2])"


def _of_midnight() -> dict[str, bytes]:
    """Files of the Midnight network; ``content`` is what a prover key is, decompressed."""
    folder = VECTORS / "midnight"

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    statement = preimage.read_preimage(read("fallible.preimage"))
    material = envelopes.KeyMaterial(*(read(f"increment.{kind}") for kind in ("prover", "verifier", "bzkir")))
    _, reader = tagged(material.prover, [_PROVER_TAG], "increment.prover")
    found = {
        "verifier": read("increment.verifier"),
        "newer.verifier": read("t8c.verifier"),
        "prover": material.prover,
        "content": gzip.decompress(reader.sized("content")),
        "preimage": read("fallible.preimage"),
        "proof": read("increment.official.proof"),
        "check": envelopes.write_check_request(envelopes.CheckRequest(statement, material.circuit)),
        "prove": envelopes.write_prove_request(envelopes.ProveRequest(statement, material, 5)),
        "reply": envelopes.write_check_reply([None, 3, 2**40]),
        "srs": read("bls_midnight_2p5"),
    }
    return {f"midnight.{name}": data for name, data in found.items()}


MIDNIGHT = _of_midnight()
"""Name -> content of files of the Midnight network."""
SEEDS: dict[str, bytes] = (
    {
        f"{curve.name}.{kind}": (VECTORS / f"chain5.{curve.name}.{kind}").read_bytes()
        for curve in CURVES
        for kind in (*BINARY, *JSON)
    }
    | GATES
    | CIRCUITS
    | MIDNIGHT
)
_SYSTEMS = {"plonk": plonk.SYSTEM, "fflonk": fflonk.SYSTEM}

Mutation = tuple[str, int, int]
_EDGES = (0, 1, 2, 3, 7, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def _edge(old: int, choice: int) -> int:
    """A number that programs trip over, or a neighbour of what stood there."""
    values = (*_EDGES, old + 1, old - 1, old * 2, old ^ 1 << choice % 32)
    return values[choice % len(values)] & 0xFFFFFFFF


def _truncate(data: bytes, a: int, b: int) -> bytes:
    return data[: a % (len(data) + 1)]


def _lengthen(data: bytes, a: int, b: int) -> bytes:
    return data + (a & 0xFF).to_bytes(1, "little") * (1 + b % 100)


def _flip(data: bytes, a: int, b: int) -> bytes:
    at = a % len(data)
    return data[:at] + bytes([data[at] ^ 1 << b % 8]) + data[at + 1 :]


def _overwrite(data: bytes, a: int, b: int) -> bytes:
    at = a % len(data)
    return data[:at] + b.to_bytes(8, "little") + data[at + 8 :]


def _insert(data: bytes, a: int, b: int) -> bytes:
    at = a % (len(data) + 1)
    return data[:at] + b.to_bytes(8, "little")[: 1 + b % 8] + data[at:]


def _field(data: bytes, a: int, b: int) -> bytes:
    """One of the first words of the file or of the section table."""
    at = 4 * (a % 64)
    if at + 4 > len(data):
        return data
    (old,) = struct.unpack_from("<I", data, at)
    return data[:at] + struct.pack("<I", _edge(old, b)) + data[at + 4 :]


def _of_sections(change: Callable[[Sections, int, int], None]) -> Callable[[bytes, int, int], bytes]:
    def mutate(data: bytes, a: int, b: int) -> bytes:
        try:
            magic, version, sections = unpack(data)
        except ValueError:
            return data
        if sections:
            change(sections, a, b)
        return pack(magic, version, sections)

    return mutate


def _swap(sections: Sections, a: int, b: int) -> None:
    i, j = a % len(sections), b % len(sections)
    sections[i], sections[j] = sections[j], sections[i]


def _delete(sections: Sections, a: int, b: int) -> None:
    del sections[a % len(sections)]


def _duplicate(sections: Sections, a: int, b: int) -> None:
    sections.insert(b % len(sections), sections[a % len(sections)])


def _renumber(sections: Sections, a: int, b: int) -> None:
    i = a % len(sections)
    sections[i] = (b % 20, sections[i][1])


def _resize(sections: Sections, a: int, b: int) -> None:
    kind, content = sections[a % len(sections)]
    size = b % (2 * len(content) + 2)
    sections[a % len(sections)] = (kind, content[:size].ljust(size, b"\1"))


def _section_field(sections: Sections, a: int, b: int) -> None:
    """A word within a section, near its start more often than not."""
    kind, content = sections[a % len(sections)]
    words = len(content) // 4
    if words:
        at = 4 * ((b >> 8) % (min(words, 32) if b >> 40 & 1 else words))
        (old,) = struct.unpack_from("<I", content, at)
        content = content[:at] + struct.pack("<I", _edge(old, b & 0xFF)) + content[at + 4 :]
        sections[a % len(sections)] = (kind, content)


def _element(sections: Sections, a: int, b: int) -> None:
    """32 bytes within a section become zeros, ones, or a copy of others."""
    kind, content = sections[a % len(sections)]
    if len(content) >= 64:
        at, other = (4 * ((b >> shift) % (len(content) // 4 - 8)) for shift in (8, 32))
        value = (bytes(32), b"\xff" * 32, content[other : other + 32])[b % 3]
        sections[a % len(sections)] = (kind, content[:at] + value + content[at + 32 :])


MUTATIONS: dict[str, Callable[[bytes, int, int], bytes]] = {
    "truncate": _truncate,
    "lengthen": _lengthen,
    "flip": _flip,
    "overwrite": _overwrite,
    "insert": _insert,
    "field": _field,
    "swap": _of_sections(_swap),
    "delete": _of_sections(_delete),
    "duplicate": _of_sections(_duplicate),
    "renumber": _of_sections(_renumber),
    "resize": _of_sections(_resize),
    "section field": _of_sections(_section_field),
    "element": _of_sections(_element),
}
TEXT_MUTATIONS = ("truncate", "lengthen", "flip", "overwrite", "insert")


def mutated(data: bytes, mutations: Sequence[Mutation]) -> bytes:
    for name, a, b in mutations:
        if data:
            data = MUTATIONS[name](data, a, b)
    return data


# What has to come of it -----------------------------------------------------------


def check(name: str, data: bytes) -> bool:
    """Reads a file of a kind -> whether it was accepted; anything but acceptance or a typed error raises."""
    kind = name.rsplit(".", 1)[-1]
    try:
        if kind == "json":
            _check_json(name, data)
        elif name in MIDNIGHT:
            _check_midnight(kind, data)
        elif name in GATES:
            _check_key_of_gates(system_of(name), data)
        else:
            _CHECKS[kind](data)
    except ProverError as error:
        message = str(error)
        assert 0 < len(message) <= MAX_MESSAGE
        assert message.isprintable(), message
        return False
    return True


def _check_witness(data: bytes) -> None:
    witness = read_witness(data)
    assert witness.values.shape == (len(witness), witness.curve.scalar.limbs)
    assert first_not_below(witness.values, witness.curve.r) == -1


def _check_r1cs(data: bytes) -> None:
    r1cs = read_r1cs(data)
    assert r1cs.n_wires > r1cs.n_public
    for matrix in r1cs.matrices:
        assert matrix.starts[0] == 0
        assert matrix.starts[-1] == len(matrix.wires) == len(matrix.values)
        assert (matrix.starts[1:] >= matrix.starts[:-1]).all()
        assert matrix.nnz == 0 or matrix.wires.max() < r1cs.n_wires
        assert first_not_below(matrix.values, r1cs.curve.r) == -1


def _check_key(data: bytes) -> None:
    key = load_key(data)
    assert len(key.a) == len(key.b1) == len(key.b2) == key.n_vars
    assert len(key.c) + len(key.ic) == key.n_vars
    assert len(key.h) == key.domain_size == 1 << key.log_domain
    if len(key.coefficients):
        assert key.coefficients["constraint"].max() < key.domain_size
        assert key.coefficients["signal"].max() < key.n_vars
    assert key.constraints < key.domain_size
    assert len(key.vk.ic) == key.n_public + 1


def system_of(name: str) -> ProofSystem:
    """The system that a file's name says it is of."""
    return _SYSTEMS.get(name.split(".")[1], groth16.SYSTEM)


def _check_key_of_gates(system: ProofSystem, data: bytes) -> None:
    key = system.load_key(data)
    wiring, n = key.wiring, key.domain_size
    assert n == 1 << n.bit_length() - 1 >= key.constraints
    for wires in wiring.maps:
        assert len(wires) == key.constraints
        assert wires.max(initial=0) < wiring.sizes.signals
    for side in ("left", "right"):
        assert (wiring.additions[side] < key.n_vars + np.arange(len(wiring.additions))).all()
    for coefficients in key.polynomials.values():
        assert coefficients.shape == (n, key.curve.scalar.limbs)
        assert first_not_below(coefficients, key.curve.r) == -1
    assert len(key.powers) > n
    assert key.vk.n_public == key.n_public <= key.constraints


def _check_ptau(data: bytes) -> None:
    ptau = read_ptau(data)
    for section in (12, 14, 15) if ptau.prepared else ():
        assert len(ptau.lagrange(section, ptau.power)) == 1 << ptau.power


def _check_circuit(data: bytes) -> None:
    """What is read is written, and read again; and it runs on any preimage, or says what is wrong."""
    circuit = read_circuit(data)
    assert read_circuit(write_circuit(circuit)) == circuit
    assert read_circuit(json.dumps(circuit_document(circuit)).encode()) == circuit
    assert architecture_of(circuit).range_columns in (1, 4)
    for name in ("hello", "fallible", "compact_is_odd"):
        given = read_preimage((VECTORS / "midnight" / f"{name}.preimage").read_bytes())
        with suppress(FailedCheck, UnsupportedFile):
            assert len(run(circuit, given).public_inputs) == n_public(circuit)


def _check_midnight(kind: str, data: bytes) -> None:
    """What is accepted has one form: written again, it is the same, but for compression."""
    if kind in ("prover", "content"):
        _check_prover_key(kind, data)
        return
    again = {
        "verifier": lambda: keys.write_verifier_key(keys.read_verifier_key(data)),
        "preimage": lambda: preimage.write_preimage(preimage.read_preimage(data)),
        "proof": lambda: envelopes.write_proof(envelopes.read_proof(data)),
        "check": lambda: envelopes.write_check_request(envelopes.read_check_request(data)),
        "prove": lambda: envelopes.write_prove_request(envelopes.read_prove_request(data)),
        "reply": lambda: envelopes.write_check_reply(envelopes.read_check_reply(data)),
        "srs": lambda: srs.srs_bytes(srs.parse_srs(data)),
    }[kind]()
    assert again == data


def _check_prover_key(kind: str, data: bytes) -> None:
    if kind == "content":
        packed = Writer(_PROVER_TAG).sized(gzip.compress(data, 1))
        key = keys.read_prover_key(bytes(packed))
    else:
        key = keys.read_prover_key(data)
    again = keys.write_prover_key(key)
    for columns in (key.fixed, key.permutation):
        assert columns.shape[1:] == (1 << key.k, BLS12_381.scalar.limbs)
        assert first_not_below(columns.reshape(-1, BLS12_381.scalar.limbs), BLS12_381.r) == -1
    if kind == "content":
        _, reader = tagged(again, [_PROVER_TAG], "again")
        assert gzip.decompress(reader.sized("content")) == data


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "bzkir": _check_circuit,
    "zkir": _check_circuit,
    "wtns": _check_witness,
    "r1cs": _check_r1cs,
    "zkey": _check_key,
    "ptau": _check_ptau,
}


def _check_json(name: str, data: bytes) -> None:
    document = parse_json(data, name)
    check_document(name, document)


def check_document(name: str, document: Any) -> None:
    """The document of a kind and curve: parsed, or a typed error."""
    curve = next(c for c in CURVES if name.startswith(c.name))
    system = system_of(name)
    if "vkey" in name:
        key = system.parse_verification_key(document, name)
        assert key.n_public == document["nPublic"]
    elif "proof" in name:
        proof = system.parse_proof(document, curve, name, False)
        again = system.write_proof(proof, curve)
        assert system.parse_proof(again, curve, name, True) == proof
    else:
        assert all(0 <= x < curve.r for x in parse_public_signals(document, curve, None, name))


def loaded(name: str) -> Any:
    return json.loads(SEEDS[name])
