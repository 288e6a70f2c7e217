"""Transcripts: hashes against known answers, and the challenges of real proofs."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuprover import devices
from gpuprover.commitments.transcript import (
    Blake2bTranscript,
    Keccak256Transcript,
    Poseidon,
    PoseidonSponge,
    Transcript,
)
from gpuprover.curves import BLS12_381, BN254, CurveParams, curve_by_name
from gpuprover.formats.compressed import compress_g1, decompress_g1
from gpuprover.keccak import RATE, SHA3, keccak256
from gpuprover.limbs import Words, g1_to_words
from tests.support.paths import VECTORS

CASES: dict[str, Any] = json.loads((VECTORS / "transcripts.json").read_text())


# Keccak-256 -----------------------------------------------------------------------------


def test_keccak_of_known_messages() -> None:
    """Of the empty message and "abc", as every implementation of Ethereum's hash has them."""
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak256(b"").hex() == empty
    assert keccak256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"


def test_keccak_is_sha3_with_another_padding(rng: random.Random) -> None:
    """With SHA3's padding it is what hashlib has; where a block is not yet full, full, and begun."""
    lengths = [k * RATE + i for k in (1, 2, 5) for i in (-2, -1, 0, 1)]
    for length in (0, 1, *lengths, *rng.sample(range(2 * RATE), 30)):
        data = rng.randbytes(length)
        assert keccak256(data, SHA3) == hashlib.sha3_256(data).digest(), length
        assert keccak256(data) != hashlib.sha3_256(data).digest()
        assert devices.keccak256(data) == keccak256(data), length


# snarkjs ---------------------------------------------------------------------------------


def point(curve: CurveParams, document: Sequence[str]) -> Words:
    x, y, z = map(int, document)
    return g1_to_words(curve, [(x, y) if z else None])[0]


def plonk_challenges(case: dict[str, Any]) -> dict[str, int]:
    """As snarkjs' verifier makes them; without u, which is in no document."""
    proof, key = case["proof"], case["vkey"]
    curve = curve_by_name(key["curve"])
    transcript = Keccak256Transcript(curve)

    def absorb(document: dict[str, Any], *names: str) -> None:
        for name in names:
            transcript.absorb_points(point(curve, document[name]))

    absorb(key, "Qm", "Ql", "Qr", "Qo", "Qc", "S1", "S2", "S3")
    transcript.absorb_scalars(*map(int, case["public"]))
    absorb(proof, "A", "B", "C")
    beta = transcript.challenge()
    transcript.absorb_scalars(beta)
    gamma = transcript.challenge()
    transcript.absorb_scalars(beta, gamma)
    absorb(proof, "Z")
    alpha = transcript.challenge()
    transcript.absorb_scalars(alpha)
    absorb(proof, "T1", "T2", "T3")
    xi = transcript.challenge()
    evaluations = ("eval_a", "eval_b", "eval_c", "eval_s1", "eval_s2", "eval_zw")
    transcript.absorb_scalars(xi, *(int(proof[name]) for name in evaluations))
    return {"beta": beta, "gamma": gamma, "alpha": alpha, "xi": xi, "v": transcript.challenge()}


def fflonk_challenges(case: dict[str, Any]) -> dict[str, int]:
    proof, key = case["proof"], case["vkey"]
    curve, points = curve_by_name(key["curve"]), proof["polynomials"]
    transcript = Keccak256Transcript(curve)
    transcript.absorb_points(point(curve, key["C0"]))
    transcript.absorb_scalars(*map(int, case["public"]))
    transcript.absorb_points(point(curve, points["C1"]))
    beta = transcript.challenge()
    transcript.absorb_scalars(beta)
    gamma = transcript.challenge()
    transcript.absorb_scalars(gamma)
    transcript.absorb_points(point(curve, points["C2"]))
    seed = transcript.challenge()
    values = [int(value) for name, value in proof["evaluations"].items() if name != "inv"]
    transcript.absorb_scalars(seed, *values)
    alpha = transcript.challenge()
    transcript.absorb_scalars(alpha)
    transcript.absorb_points(point(curve, points["W1"]))
    y = transcript.challenge()
    xi = pow(seed, 24, curve.r)
    return {"beta": beta, "gamma": gamma, "xiSeed": seed, "xi": xi, "alpha": alpha, "y": y}


REPLAYS = {"plonk": plonk_challenges, "fflonk": fflonk_challenges}


def replay(name: str, case: dict[str, Any]) -> None:
    expected = {challenge: int(value) for challenge, value in case["challenges"].items()}
    assert REPLAYS[name.rsplit(".", 1)[1]](case) == expected


@pytest.mark.parametrize("name", [name for name in CASES if name.endswith("plonk") or "fflonk" in name])
def test_challenges_of_snarkjs(name: str) -> None:
    case = CASES[name]
    replay(name, case)
    changed = {**case, "public": [str(int(case["public"][0]) + 1), *case["public"][1:]]}
    with pytest.raises(AssertionError):
        replay(name, changed)


def test_challenges_of_all_proofs_of_snarkjs(data_dir: Path) -> None:
    """Infinity among the key's points, no public signals, many."""
    folder = data_dir / "plonk" / "fixed"
    if not folder.is_dir():
        pytest.skip("GPUPROVER_TEST_DATA has no plonk/fixed")
    seen = 0
    for path in sorted(folder.rglob("*.b-fixed.challenges.json")):
        name = path.name.removesuffix(".b-fixed.challenges.json")
        case = json.loads(path.read_text())
        for part, suffix in (("proof", "b-fixed.proof"), ("public", "public"), ("vkey", "vkey")):
            case[part] = json.loads((path.parent / f"{name}.{suffix}.json").read_text())
        replay(name, case)
        seen += 1
    assert seen > 10


# Midnight --------------------------------------------------------------------------------

ADVICE, EVALUATIONS, SETS = 8, 54, 4
"""Columns, opened values and point sets of the circuit in the vectors."""


def messages(proof: bytes) -> Iterator[tuple[str, int]]:
    """(message or challenge, how many of them), in the order of a proof for that circuit."""
    yield "points", ADVICE
    yield "theta", 0
    yield "points", 2  # a permuted lookup
    yield "beta", 0
    yield "gamma", 0
    yield "points", 3 + 1  # products of permutation and lookup
    yield "trash", 0
    yield "points", 1 + 1  # the trash argument, the random polynomial
    yield "y", 0
    yield "points", 4  # the quotient
    yield "x", 0
    yield "scalars", EVALUATIONS
    yield "x1", 0
    yield "x2", 0
    yield "points", 1
    yield "x3", 0
    yield "scalars", SETS
    yield "x4", 0
    yield "points", 1


def midnight_challenges(case: dict[str, Any], proof: bytes) -> dict[str, int]:
    curve, at = BLS12_381, 0
    transcript = Blake2bTranscript(curve)
    public = [int(value) for value in case["public"]]
    transcript.absorb_scalars(int(case["key_hash"], 16))
    transcript.absorb_points(g1_to_words(curve, [None]))
    transcript.absorb_scalars(len(public), *public)
    found: dict[str, int] = {}
    for what, count in messages(proof):
        size = 48 if what == "points" else 32
        parts = [proof[i : i + size] for i in range(at, at + size * count, size)]
        at += size * count
        if what == "points":
            rows = [decompress_g1(curve, part) for part in parts]
            absorbed = b"".join(transcript.absorb_points(row) for row in rows)
        elif what == "scalars":
            absorbed = transcript.absorb_scalars(*(int.from_bytes(part, "little") for part in parts))
        else:
            found[what], absorbed = transcript.challenge(), b""
        assert absorbed == b"".join(parts), "a message stands in a proof as it is absorbed"
    assert at == len(proof)
    return found


def test_challenges_of_midnight() -> None:
    case = CASES["hello.midnight"]
    expected = {name: int(value) for name, value in case["challenges"].items()}
    assert midnight_challenges(case, bytes.fromhex(case["proof"])) == expected
    case = {**case, "public": [*case["public"][:-1], "146"]}
    assert not expected.items() & midnight_challenges(case, bytes.fromhex(case["proof"])).items()


def test_two_challenges_in_a_row_differ() -> None:
    transcript = Blake2bTranscript(BLS12_381)
    first = transcript.challenge()
    state = hashlib.blake2b(b"\x00", key=b"Domain separator for transcript")
    assert first == int.from_bytes(state.digest(), "little") % BLS12_381.r
    state.update(b"\x00")
    assert transcript.challenge() == int.from_bytes(state.digest(), "little") % BLS12_381.r
    assert Blake2bTranscript(BLS12_381, key=b"", person=b"Halo2-Transcript").challenge() != first


# What both refuse ------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Keccak256Transcript, Blake2bTranscript])
def test_scalars_out_of_range_are_refused(make: type[Any], curve: CurveParams) -> None:
    transcript: Transcript = make(curve)
    for value in (-1, curve.r, curve.r + 1):
        with pytest.raises(ValueError, match="not in"):
            transcript.absorb_scalars(0, value)
    fresh: Transcript = make(curve)
    transcript.absorb_scalars(0, curve.r - 1)
    fresh.absorb_scalars(0)
    fresh.absorb_scalars(curve.r - 1)
    assert transcript.challenge() == fresh.challenge(), "a refused call absorbs nothing"


# Compressed points -----------------------------------------------------------------------


def test_compressed_points(rng: random.Random) -> None:
    """The generator's bytes are those of the draft, appendix C's example; each point comes back."""
    curve = BLS12_381
    start = compress_g1(curve, g1_to_words(curve, [curve.g1])[0])
    assert start[:4].hex() == "97f1d3a7"
    x, y = curve.g1
    for affine in (None, (x, y), (x, curve.q - y)):
        words = g1_to_words(curve, [affine])[0]
        data = compress_g1(curve, words)
        assert (decompress_g1(curve, data) == words).all()
    assert compress_g1(curve, g1_to_words(curve, [None])[0]) == b"\xc0" + bytes(47)


def test_bytes_that_are_no_point() -> None:
    curve, (x, _) = BLS12_381, BLS12_381.g1
    squares = {x: pow(x**3 + curve.b, (curve.q - 1) // 2, curve.q) == 1 for x in range(1, 100)}
    on, off = (next(x for x, square in squares.items() if square is wanted) for wanted in (True, False))

    def data(first: int, x: int) -> bytes:
        return (first << 376 | x).to_bytes(48, "big")

    for wrong, why in (
        (data(0x80, x)[1:], "48 bytes"),
        (data(0, x), "not compressed"),
        (data(0x20, x), "not compressed"),
        (data(0x80, curve.q), "base prime"),
        (data(0x80, on + curve.q), "base prime"),
        (data(0x80, off), "not on the curve"),
        (data(0xC0, 1), "other bits"),
        (data(0xE0, 0), "other bits"),
    ):
        with pytest.raises(ValueError, match=why):
            decompress_g1(curve, wrong)
    assert decompress_g1(curve, data(0x80, on)).any()
    with pytest.raises(ValueError, match="no compressed form"):
        decompress_g1(BN254, bytes(32))
    with pytest.raises(ValueError, match="no compressed form"):
        compress_g1(BN254, g1_to_words(BN254, [None])[0])


# Poseidon --------------------------------------------------------------------------------

P = 0x40000000000000000000000000000000224698FC094CF91B992D30ED00000001
Q = 0x40000000000000000000000000000000224698FC0994A8DD8C46EB2100000001


def kimchi(modulus: int, name: str, attempt: int) -> Poseidon:
    """The constants of kimchi's Poseidon, by their rule: SHA-256 of a name, a number and a try."""

    def value(prefix: str, i: int) -> int:
        tries = (hashlib.sha256(f"CodaRescuePasta_{name}_kimchi{prefix}{i}_{j}".encode()) for j in range(99))
        numbers = (int.from_bytes(digest.digest(), "big") for digest in tries)
        return next(number for number in numbers if number < modulus)

    rows = range(3)
    x = [value("MDSx", 3 * attempt + i) for i in rows]
    y = [value("MDSy", 3 * attempt + i) for i in rows]
    return Poseidon(
        modulus,
        rate=2,
        power=7,
        full_rounds=55,
        partial_rounds=0,
        matrix=tuple(tuple(pow(x[i] - y[j], -1, modulus) for j in rows) for i in rows),
        constants=tuple(tuple(value("RoundConstants", 3 * r + i) for i in rows) for r in range(55)),
        constants_last=True,
    )


def grain(modulus: int, rounds: tuple[int, int]) -> Poseidon:
    """The constants of the paper's generator, for width 3 and x^5, with the power of the last element."""
    bits = modulus.bit_length()
    header = [(1, 2), (0, 4), (bits, 12), (3, 12), (rounds[0], 10), (rounds[1], 10), ((1 << 30) - 1, 30)]
    state = [int(bit) for value, size in header for bit in f"{value:0{size}b}"]

    def step() -> int:
        state.append(state[62] ^ state[51] ^ state[38] ^ state[23] ^ state[13] ^ state[0])
        del state[0]
        return state[-1]

    for _ in range(160):
        step()

    def chosen() -> int:
        while not step():
            step()
        return step()

    def number() -> int:
        return int("".join(str(chosen()) for _ in range(bits)), 2)

    def below() -> int:
        return next(n for n in iter(number, None) if n < modulus)

    constants = tuple(tuple(below() for _ in range(3)) for _ in range(sum(rounds)))
    xy = [number() % modulus for _ in range(6)]
    matrix = tuple(tuple(pow(xy[i] + xy[3 + j], -1, modulus) for j in range(3)) for i in range(3))
    return Poseidon(modulus, 2, 5, *rounds, matrix, constants, partial_element=2)


@pytest.fixture(scope="module")
def kimchi_fp() -> Poseidon:
    return kimchi(P, "p", 0)


def test_poseidon_of_kimchi(kimchi_fp: Poseidon) -> None:
    for case in CASES["poseidon.pasta.fp"]["hashes"]:
        sponge = PoseidonSponge(kimchi_fp)
        sponge.absorb(*(int(value, 16) for value in case["in"]))
        assert sponge.squeeze() == int(case["out"], 16), case["in"]
    other = kimchi(Q, "q", 4)
    for case in CASES["poseidon.pasta.fq"]["permutations"]:
        state = [int(value, 16) for value in case["in"]]
        assert other.permute(state) == [int(value, 16) for value in case["out"]]


def test_poseidon_of_midnight() -> None:
    """With partial rounds; a hash begins with the number of its elements."""
    poseidon = grain(BLS12_381.r, (8, 60))
    assert poseidon.constants[0][0] == 0xA59176C702E80BDE6789030868B74DA429EB1495835F5D0118A2E2F65548257
    assert poseidon.matrix[0][0] == 0x1B8114C381B922FD5D6D241210E2D8A68AD5744053BA9E776118DE4107B51ACE
    sponge = PoseidonSponge(poseidon, (0, 0, 2))
    # The circuit's commitment to its input, with the randomness 777: an input of a proof that was accepted.
    sponge.absorb(777, 123456789)
    assert sponge.squeeze() == int(CASES["hello.midnight"]["public"][1])


def test_a_sponge_permutes_when_it_has_to(kimchi_fp: Poseidon) -> None:
    """As the definition says, step by step, over a state of plain integers."""
    sponge, state = PoseidonSponge(kimchi_fp), [0, 0, 0]
    sponge.absorb(5)
    sponge.absorb(6, 7)
    state = kimchi_fp.permute([5, 6, 0])
    state = kimchi_fp.permute([(state[0] + 7) % P, *state[1:]])
    other, again_first = sponge.copy(), state[0]
    assert [sponge.squeeze(), sponge.squeeze()] == state[:2]
    # Absorbing again begins at the first element, without a permutation.
    again = sponge.copy()
    again.absorb(8)
    assert again.squeeze() == kimchi_fp.permute([(state[0] + 8) % P, *state[1:]])[0]
    state = kimchi_fp.permute(state)
    assert sponge.squeeze() == state[0]
    assert other.squeeze() == again_first


def test_poseidon_refuses_what_does_not_fit(kimchi_fp: Poseidon) -> None:
    for wrong, why in (
        ({"rate": 3}, "rate"),
        ({"rate": 0}, "rate"),
        ({"full_rounds": 54}, "54 rounds"),
        ({"full_rounds": 53, "partial_rounds": 2}, "equally many"),
        ({"partial_element": 3}, "partial element"),
        ({"power": 3}, "permutation"),
        ({"matrix": ((1, 2, P), *kimchi_fp.matrix[1:])}, "elements of the field"),
        ({"matrix": (kimchi_fp.matrix[0][:2], *kimchi_fp.matrix[1:])}, "elements of the field"),
    ):
        with pytest.raises(ValueError, match=why):
            replace(kimchi_fp, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="element of the field"):
        PoseidonSponge(kimchi_fp).absorb(P)
    with pytest.raises(ValueError, match="state of 3"):
        PoseidonSponge(kimchi_fp, (0, 0))
