"""What is said of keys: insecure ones are told of everywhere; checks find what does not belong together."""

from __future__ import annotations

import json
import logging
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover import reference
from gpuprover.backend import Backend
from gpuprover.circuits import Circuit, chain_circuit
from gpuprover.curves import BLS12_381, BN254, CURVES, CurveParams, Group
from gpuprover.devices import open_backend
from gpuprover.engine.directory import CircuitDirectory
from gpuprover.errors import InsecureKeyWarning, InvalidInput, MalformedFile
from gpuprover.formats import ptau as pt
from gpuprover.formats.ptau import read_ptau
from gpuprover.formats.r1cs import read_r1cs
from gpuprover.job import Job
from gpuprover.limbs import Words, generator, ints_to_words, words_to_g1
from gpuprover.systems.groth16 import consistency
from gpuprover.systems.groth16 import key as zkey
from gpuprover.systems.groth16 import key_warnings as texts
from gpuprover.systems.groth16.consistency import check_against_powers, check_circuit, check_key, check_powers
from gpuprover.systems.groth16.documents import Proof, VerificationKey, parse_verification_key, proof_to_json
from gpuprover.systems.groth16.from_ptau import setup_from_ptau
from gpuprover.systems.groth16.from_secret import setup_insecure
from gpuprover.systems.groth16.key import load_key
from gpuprover.systems.groth16.solidity import export_verifier
from gpuprover.verifier.keys import LoadedKey
from tests.support.containers import contributed, edit, make_ptau, put, unpack
from tests.support.running import Run
from tests.support.samples import plain, point_words, row, spec

TAU, ALPHA, BETA = 123456789, 987654321, 192837465
both_curves = pytest.mark.parametrize("curve", CURVES, ids=lambda c: c.name)
# Where the other curve adds nothing but time.
one_curve = pytest.mark.parametrize(
    "curve", [pytest.param(c, marks=() if c is BN254 else pytest.mark.slow, id=c.name) for c in CURVES]
)


def cpu(curve: CurveParams) -> Backend:
    return open_backend("cpu", curve, Job(threads=2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[CurveParams], Made]:
    """A circuit's files over a curve: .r1cs, .wtns, .ptau and keys, made once."""
    kept: dict[str, Made] = {}

    def make(curve: CurveParams) -> Made:
        if curve.name not in kept:
            kept[curve.name] = Made(curve, tmp_path_factory.mktemp(curve.name))
        return kept[curve.name]

    return make


class Made:
    def __init__(self, curve: CurveParams, folder: Path) -> None:
        backend = cpu(curve)
        self.curve, self.folder = curve, folder
        self.circuit: Circuit = chain_circuit(5, curve)
        self.r1cs, self.wtns = folder / "c.r1cs", folder / "c.wtns"
        self.circuit.write(self.r1cs, self.wtns)
        self.ptau = make_ptau(curve, 4, TAU, ALPHA, BETA, backend)
        setup_from_ptau(self.circuit.r1cs, read_ptau(self.ptau), folder / "initial.zkey", backend)
        self.initial = (folder / "initial.zkey").read_bytes()
        self.final = contributed(self.initial, 0xABCDEF0123456789, backend)
        setup_insecure(self.circuit.r1cs, folder / "own.zkey", backend)
        self.own = (folder / "own.zkey").read_bytes()

    def file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


# Warnings ------------------------------------------------------------------------


def forged(key: VerificationKey, public: list[int], log: int) -> dict[str, Any]:
    """A proof of any statement, for who knows δ = log·γ: A = α, B = β, C = −X/log."""
    E, r = reference.g1(key.curve), key.curve.r
    x = E.msm(words_to_g1(key.curve, key.ic), (1, *public))
    c = row(key.curve, Group.G1, E.scalar_mul(x, -pow(log, -1, r) % r))
    return proof_to_json(Proof(key.alpha1, key.beta2, c), key.curve)


@pytest.mark.parametrize(
    ("curve", "delta"), [(BN254, 1), pytest.param(BLS12_381, -1, marks=pytest.mark.slow)], ids=["1", "-1"]
)
def test_every_command_tells_of_a_key_that_anyone_can_forge_for(
    curve: CurveParams, delta: int, made: Any, run: Run, tmp_path: Path
) -> None:
    """Whatever number of contributions its file claims."""
    files = made(curve)
    backend = cpu(curve)
    key = files.file("claims.zkey", contributed(files.initial, delta % curve.r, backend, claims=3))
    assert load_key(key).contributions == 3
    vkey, proof, public = (tmp_path / f"{n}.json" for n in ("vkey", "proof", "public"))
    for command in (
        ("zkey", "info", key),
        ("zkey", "check", key),
        ("zkey", "export", "verificationkey", key, vkey),
        ("prove", key, files.wtns, proof, public),
        ("verify", vkey, public, proof),
    ):
        done = run(*command)
        assert done.code == 0, done.err
        assert texts.NO_CONTRIBUTION in done.err, command
    # And so it is.
    parsed = parse_verification_key(json.loads(vkey.read_text()))
    proof.write_text(json.dumps(forged(parsed, [4711] * parsed.n_public, delta)))
    public.write_text(json.dumps(["4711"] * parsed.n_public))
    done = run("verify", vkey, public, proof, "--json")
    assert done.answer == {"valid": True, "warnings": [texts.NO_CONTRIBUTION]}
    if curve is BN254:
        contract = tmp_path / "v.sol"
        done = run("zkey", "export", "solidityverifier", key, contract)
        assert (done.code, contract.exists()) == (2, False)
        assert run("zkey", "export", "solidityverifier", key, contract, "--allow-insecure").code == 0
        assert contract.exists()


def negated(curve: CurveParams, point: Words) -> Words:
    group = Group.G1 if len(point) == curve.g1_words else Group.G2
    return row(curve, group, spec(curve, group).neg(plain(curve, group, point)))


@both_curves
def test_warnings_follow_from_points(curve: CurveParams, made: Any) -> None:
    sound = load_key(made(curve).final)
    assert sound.warnings == sound.vk.warnings == ()
    assert load_key(made(curve).initial).warnings == (texts.NO_CONTRIBUTION,)
    assert load_key(made(curve).own).warnings == (texts.INSECURE,)
    assert load_key(made(curve).own).vk.warnings == (texts.OWN_GAMMA,)
    # A contribution does not take back what the maker of the first phase knows.
    assert load_key(contributed(made(curve).own, 7, cpu(curve))).warnings == (texts.OWN_GAMMA,)

    def ic(logs: list[int]) -> Words:
        """The constant's point and those of public signals with these logarithms."""
        return point_words(curve, Group.G1, [9, *logs])

    def changed(**points: Any) -> tuple[str, ...]:
        h = sound.header
        given = {
            name: getattr(h, name) for name in ("alpha1", "beta1", "beta2", "gamma2", "delta1", "delta2")
        }
        return texts.key_warnings(curve, **{**given, "ic": ic([1, 2]), "contributions": 5, **points})

    h, (other,) = sound.header, point_words(curve, Group.G2, [99])
    g1, g2 = generator(curve, Group.G1), generator(curve, Group.G2)
    for sign in (lambda p: p, lambda p: negated(curve, p)):
        assert changed(delta1=sign(g1)) == (texts.NO_CONTRIBUTION,)
        assert changed(delta2=sign(g2)) == (texts.NO_CONTRIBUTION,)
        assert changed(gamma2=other, delta2=sign(other)) == (texts.NO_CONTRIBUTION,)
        assert changed(gamma2=sign(h.beta2)) == (texts.NO_FIRST_PHASE, texts.OWN_GAMMA)
        for name in ("alpha1", "beta1"):
            assert changed(**{name: sign(g1)}) == (texts.NO_FIRST_PHASE,)
        assert changed(beta2=sign(g2)) == (texts.NO_FIRST_PHASE,)
        assert changed(delta1=sign(h.alpha1)) == (texts.DEPENDENT,)
        assert changed(delta2=sign(h.beta2)) == (texts.DEPENDENT,)
    assert changed(gamma2=other) == (texts.OWN_GAMMA,)
    assert changed(contributions=0) == (texts.INSECURE,)
    assert "public signal 1 is not bound" in changed(ic=ic([5, 0, 6]))[0]
    for again in (5, -5):
        assert "public signals 0 and 2 are bound by the same point" in changed(ic=ic([5, 6, again]))[0]


def test_the_library_warns_of_documents(made: Any) -> None:
    key = load_key(made(BN254).initial)
    document, public = key.vk.document, ["1"] * key.n_public
    proof = forged(key.vk, [1] * key.n_public, 1)
    with pytest.warns(InsecureKeyWarning, match="anyone can forge proofs"):
        assert gpuprover.verify(document, public, proof)
    with pytest.warns(InsecureKeyWarning, match="anyone can forge proofs"):
        assert gpuprover.verify_batch(document, [(public, proof)]) == [True]
    with pytest.raises(InvalidInput, match="no contract for an insecure key"):
        export_verifier(document)


def test_verifiers_and_folders_tell(made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = made(BN254)
    weak, sound = load_key(files.initial), load_key(files.final)
    loaded = LoadedKey(weak.vk.document)
    loaded.prepare()
    assert loaded.describe()["warnings"] == [texts.NO_CONTRIBUTION]
    assert LoadedKey(sound.vk.document).warnings == ()
    (tmp_path / "weak.zkey").write_bytes(files.initial)
    (tmp_path / "document.vkey.json").write_text(json.dumps(weak.vk.document))
    (tmp_path / "sound.zkey").write_bytes(files.final)
    (tmp_path / "damaged.zkey").write_bytes(b"zkey")
    directory = CircuitDirectory(tmp_path)
    with caplog.at_level(logging.WARNING):
        directory.survey()
        directory.survey()  # says it once
    told = [record.getMessage() for record in caplog.records]
    assert told == [f"circuit {name}: {texts.NO_CONTRIBUTION}" for name in ("document", "weak")]
    assert directory.warnings() == tuple(f"{name}: {texts.NO_CONTRIBUTION}" for name in ("document", "weak"))


def test_the_verifiers_command_tells_before_it_listens(made: Any, tmp_path: Path) -> None:
    vkey = tmp_path / "v.json"
    vkey.write_text(json.dumps(load_key(made(BN254).initial).vk.document))
    command = [sys.executable, "-m", "gpuprover", "verifier", "--vkey", f"k={vkey}"]
    command += ["--socket", str(vkey / "socket")]  # below a file, where no socket can be
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert f"{vkey}: {texts.NO_CONTRIBUTION}" in done.stderr


def test_a_prover_tells_in_its_status(made: Any, tmp_path: Path) -> None:
    (tmp_path / "weak.zkey").write_bytes(made(BN254).initial)
    with gpuprover.create_prover(circuit_keys_path=str(tmp_path), policy="off", verifier="inline") as prover:
        assert prover.get_status().warnings == (f"weak: {texts.NO_CONTRIBUTION}",)


# Strict documents ------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["0{}", "0x{:x}", "0X{:X}", "{}"], ids=["zero", "hex", "HEX", "number"])
def test_strict_takes_one_spelling(spelling: str, made: Any, run: Run, tmp_path: Path) -> None:
    key = load_key(made(BN254).final)
    result = gpuprover.prove(key, made(BN254).wtns)
    vkey, proof, public = (tmp_path / f"{n}.json" for n in ("vkey", "proof", "public"))
    vkey.write_text(json.dumps(key.vk.document))

    def other(text: str) -> Any:
        return int(text) if spelling == "{}" else spelling.format(text if spelling == "0{}" else int(text))

    def verdict(*options: str) -> int:
        return run("verify", vkey, public, proof, *options).code

    proof.write_text(json.dumps(result.proof))
    public.write_text(json.dumps(result.public_signals))
    assert (verdict(), verdict("--strict")) == (0, 0)
    public.write_text(json.dumps([other(result.public_signals[0]), *result.public_signals[1:]]))
    assert (verdict(), verdict("--strict")) == (0, 2)
    public.write_text(json.dumps(result.public_signals))
    a = result.proof["pi_a"]
    proof.write_text(json.dumps({**result.proof, "pi_a": [other(a[0]), *a[1:]]}))
    assert (verdict(), verdict("--strict")) == (0, 2)


# Checks of keys ----------------------------------------------------------------------


def swapped(section: int, i: int, j: int, width: int) -> Callable[[bytes], bytes]:
    def change(b: bytearray) -> None:
        one, two = slice(i * width, (i + 1) * width), slice(j * width, (j + 1) * width)
        b[one], b[two] = b[two], b[one]

    return lambda data: edit(data, section, change)


def manipulations(curve: CurveParams) -> dict[str, tuple[Callable[[bytes], bytes], str]]:
    """What is done to a key, and what the check of the key alone says."""
    g1, g2, scalar = 8 * curve.g1_words, 8 * curve.g2_words, curve.scalar.bytes
    start, record = 8 + curve.base.bytes + scalar + 12, 12 + scalar

    def header(to: int, source: int, size: int) -> Callable[[bytes], bytes]:
        def change(b: bytearray) -> None:
            b[start + to : start + to + size] = b[start + source : start + source + size]

        return lambda data: edit(data, zkey.HEADER, change)

    def drop(count: int) -> Callable[[bytes], bytes]:
        def change(b: bytearray) -> bytes:
            left = struct.unpack_from("<I", b)[0] - count
            return struct.pack("<I", left) + bytes(b[4 : 4 + left * record])

        return lambda data: edit(data, zkey.COEFFICIENTS, change)

    def one_coefficient(data: bytes) -> bytes:
        return edit(data, zkey.COEFFICIENTS, put(4 + 12, (5).to_bytes(scalar, "little")))

    together = "sections 4 to 9: A, B, H and the coefficients do not belong together"
    secrets = "are of different secrets"
    delta1 = 2 * g1 + 2 * g2
    return {
        "delta1 := alpha1": (header(delta1, 0, g1), f"delta1 and delta2 {secrets}"),
        "delta2 := gamma2": (header(delta1 + g1, 2 * g1 + g2, g2), f"delta1 and delta2 {secrets}"),
        "beta1 := alpha1": (header(g1, 0, g1), f"beta1 and beta2 {secrets}"),
        "A": (swapped(zkey.A, 2, 3, g1), together),
        "B1": (swapped(zkey.B1, 2, 3, g1), "section 6 .B1 points.: the points are not those of section 7"),
        "B2": (swapped(zkey.B2, 2, 3, g2), "section 6 .B1 points.: the points are not those of section 7"),
        "B1 and B2": (
            lambda data: swapped(zkey.B1, 2, 3, g1)(swapped(zkey.B2, 2, 3, g2)(data)),
            together,
        ),
        "H": (swapped(zkey.H, 3, 4, g1), together),
        "public rows dropped": (drop(2), together),
        "first coefficient": (one_coefficient, together),
        "last contribution": (
            lambda data: edit(data, zkey.CONTRIBUTIONS, put(68, bytes(g1))),
            "section 10 .contributions.: delta after the last contribution is not the header's",
        ),
    }


@one_curve
@pytest.mark.parametrize("name", manipulations(BN254))
def test_check_finds(curve: CurveParams, name: str, made: Any, run: Run, tmp_path: Path) -> None:
    change, said = manipulations(curve)[name]
    key = tmp_path / "k.zkey"
    key.write_bytes(change(made(curve).final))
    with pytest.raises(MalformedFile, match=said):
        check_key(load_key(key), cpu(curve))


@one_curve
@pytest.mark.parametrize("section", [zkey.IC, zkey.C])
def test_ic_and_c_need_the_powers_of_tau(
    curve: CurveParams, section: int, made: Any, run: Run, tmp_path: Path
) -> None:
    """The check of a key alone says that it did not look at them; a prover blames not the witness alone."""
    files = made(curve)
    key, ptau = tmp_path / "k.zkey", files.file("p.ptau", files.ptau)
    key.write_bytes(swapped(section, 0, 1, 8 * curve.g1_words)(files.final))
    done = run("zkey", "check", key, "--json")
    assert done.code == 0
    assert "IC and C" in done.answer["unchecked"]
    done = run("zkey", "verify", files.r1cs, ptau, key)
    assert done.code == 2
    assert f"section {section} ({zkey.SECTIONS[section]}): the points are not those of" in done.err
    done = run("prove", key, files.wtns, tmp_path / "p.json", tmp_path / "q.json")
    assert done.code == 1
    assert "or the key is inconsistent" in done.err


@one_curve
def test_sound_keys_pass(curve: CurveParams, made: Any, run: Run, tmp_path: Path) -> None:
    files = made(curve)
    ptau = files.file("p.ptau", files.ptau)
    key = tmp_path / "k.zkey"
    for data in (files.final, files.initial):
        key.write_bytes(data)
        done = run("zkey", "verify", files.r1cs, ptau, key, "--json")
        assert done.code == 0, done.err
        assert done.answer["unchecked"] == [consistency.CONTRIBUTIONS]
    key.write_bytes(files.own)
    done = run("zkey", "check", key, "--json")
    assert (done.code, done.answer["r1cs"]) == (0, None)
    (tmp_path / "k.r1cs").write_bytes(files.r1cs.read_bytes())  # beside the key
    done = run("zkey", "check", key, "--json")
    assert (done.code, done.answer["r1cs"]) == (0, str(tmp_path / "k.r1cs"))


@both_curves
def test_a_key_and_its_circuit(curve: CurveParams, made: Any, tmp_path: Path) -> None:
    files = made(curve)
    backend, key, r1cs = cpu(curve), load_key(files.final), read_r1cs(files.r1cs)
    check_circuit(key, r1cs, backend)
    with pytest.raises(MalformedFile, match="8 variables, expected 9 for"):
        check_circuit(key, chain_circuit(6, curve).r1cs, backend)
    for name, place in (("public rows dropped", "row 6 of A"), ("first coefficient", "row 0 of A")):
        changed = load_key(manipulations(curve)[name][0](files.final))
        with pytest.raises(MalformedFile, match=rf"section 4 \(coefficients\): {place} is not that of"):
            check_circuit(changed, r1cs, backend)


@one_curve
@pytest.mark.parametrize("name", ["delta2 := gamma2", "beta1 := alpha1", "A", "B1", "B2", "B1 and B2", "H"])
def test_powers_of_tau_find_it_too(curve: CurveParams, name: str, made: Any) -> None:
    """Alone: that the other checks come first is not what finds it."""
    files = made(curve)
    key = load_key(manipulations(curve)[name][0](files.final))
    with pytest.raises(MalformedFile):
        check_against_powers(key, files.circuit.r1cs, read_ptau(files.ptau), cpu(curve))


def test_small_secrets_are_found_by_trying(made: Any) -> None:
    files, backend = made(BN254), cpu(BN254)
    for delta, found in ((12345, True), (-16384, True), (16385, False)):
        key = load_key(contributed(files.initial, delta % BN254.r, backend))
        assert key.warnings == ()
        assert (texts.NO_CONTRIBUTION in check_key(key, backend).warnings) is found


# Powers of tau ------------------------------------------------------------------------


@one_curve
@pytest.mark.parametrize(
    ("secrets", "known"),
    [
        ((TAU, ALPHA, BETA), False),
        ((1, 1, 1), True),
        ((-1, ALPHA, BETA), True),
        ((TAU, 1, BETA), True),
        ((TAU, ALPHA, -1), True),
        ((TAU, ALPHA, ALPHA), True),
        ((TAU, TAU**3, BETA), True),
    ],
)
def test_known_secrets_of_a_ceremony(curve: CurveParams, secrets: Any, known: bool, tmp_path: Path) -> None:
    backend = cpu(curve)
    tau, alpha, beta = (s % curve.r for s in secrets)
    if tau in (1, curve.r - 1):  # where Lagrange polynomials have their places, they are 1 or 0
        ptau = read_ptau(degenerate_ptau(curve, tau, alpha, beta, backend))
    else:
        ptau = read_ptau(make_ptau(curve, 4, tau, alpha, beta, backend))
    (found,) = check_powers(ptau, 3, backend)
    assert ("1 or another known number" in found) is known
    result = setup_from_ptau(chain_circuit(5, curve).r1cs, ptau, tmp_path / "k.zkey", backend)
    assert result.warnings == (texts.NO_CONTRIBUTION, found)


def degenerate_ptau(curve: CurveParams, tau: int, alpha: int, beta: int, backend: Backend) -> bytes:
    """As :func:`make_ptau` for τ = 1 or −1, as ``snarkjs powersoftau new`` and ``prepare phase2`` make it."""
    data = make_ptau(curve, 4, TAU, alpha, beta, backend)

    def points(group: Group, scalars: list[int], factor: int = 1) -> bytes:
        words = ints_to_words((s * factor % curve.r for s in scalars), curve.scalar.limbs)
        return backend.fixed_base_mul(group, generator(curve, group), words).tobytes()

    def lagrange(top: int) -> list[int]:
        found = []
        for log_n in range(top + 1):
            n, r = 1 << log_n, curve.r
            omega, inverse = curve.scalar.root_of_unity(log_n), pow(1 << log_n, -1, r)
            # The highest power is missing from the largest block, as in snarkjs's files.
            given = n - (log_n == 5)
            found += [
                inverse * sum(pow(tau, k, r) * pow(omega, -i * k, r) for k in range(given)) % r
                for i in range(n)
            ]
        return found

    powers = [pow(tau, i, curve.r) for i in range(31)]
    for section, content in {
        pt.TAU_G1: points(Group.G1, powers),
        pt.TAU_G2: points(Group.G2, powers[:16]),
        pt.ALPHA_TAU_G1: points(Group.G1, powers[:16], alpha),
        pt.BETA_TAU_G1: points(Group.G1, powers[:16], beta),
        pt.LAGRANGE_TAU_G1: points(Group.G1, lagrange(5)),
        pt.LAGRANGE_TAU_G2: points(Group.G2, lagrange(4)),
        pt.LAGRANGE_ALPHA_TAU_G1: points(Group.G1, lagrange(4), alpha),
        pt.LAGRANGE_BETA_TAU_G1: points(Group.G1, lagrange(4), beta),
    }.items():
        data = edit(data, section, lambda _, content=content: content)
    return data


@cache
def ceremony(curve: CurveParams, power: int, add: int) -> bytes:
    return make_ptau(curve, power, TAU + add, ALPHA + add, BETA + add, cpu(curve))


@one_curve
@pytest.mark.parametrize(
    "section",
    [
        pt.TAU_G1,
        pt.TAU_G2,
        pt.BETA_TAU_G1,
        pt.BETA_G2,
        pt.LAGRANGE_TAU_G1,
        pt.LAGRANGE_TAU_G2,
        pt.LAGRANGE_ALPHA_TAU_G1,
        pt.LAGRANGE_BETA_TAU_G1,
    ],
)
@pytest.mark.parametrize("power", [3, 4], ids=["exact", "larger"])
def test_a_section_of_another_ceremony_is_found(
    curve: CurveParams, section: int, power: int, tmp_path: Path
) -> None:
    backend = cpu(curve)
    mine, other = (ceremony(curve, power, i) for i in (0, 1))
    foreign = dict(unpack(other)[2])[section]
    changed = read_ptau(edit(mine, section, lambda _: foreign))
    with pytest.raises(MalformedFile, match=r"section \d+ \("):
        setup_from_ptau(chain_circuit(5, curve).r1cs, changed, tmp_path / "k.zkey", backend)
    assert not (tmp_path / "k.zkey").exists()


@pytest.mark.parametrize("section", [pt.ALPHA_TAU_G1, pt.BETA_TAU_G1, pt.BETA_G2, pt.TAU_G1])
def test_no_ceremony_gives_infinity(section: int, made: Any, tmp_path: Path) -> None:
    size = 8 * (BN254.g2_words if section == pt.BETA_G2 else BN254.g1_words)
    at = size * (section == pt.TAU_G1)  # τ itself
    changed = edit(made(BN254).ptau, section, put(at, bytes(size)))
    with pytest.raises(MalformedFile, match=rf"section {section} .*infinity, which no ceremony gives"):
        setup_from_ptau(chain_circuit(5).r1cs, read_ptau(changed), tmp_path / "k.zkey", cpu(BN254))
