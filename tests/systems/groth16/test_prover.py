"""Groth16 end to end on the CPU: vectors, shapes of circuits, bad witnesses and keys, the library's calls."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpuprover
from gpuprover.circuits import Circuit, CircuitBuilder, bits_circuit, chain_circuit, poseidon_circuit
from gpuprover.curves import BLS12_381, BN254, CurveParams
from gpuprover.devices import open_backend
from gpuprover.formats.wtns import read_witness
from gpuprover.job import Job, Progress
from gpuprover.limbs import words_to_ints
from gpuprover.systems.groth16 import prover, verifier
from tests.support.containers import edit, put, reordered
from tests.support.paths import ROOT, VECTORS


@dataclass(frozen=True)
class Made:
    """A circuit's files, with a key from an insecure set-up."""

    circuit: Circuit
    zkey: Path
    wtns: Path

    @property
    def values(self) -> list[int]:
        return words_to_ints(self.circuit.witness.values)


def make(folder: Path, circuit: Circuit) -> Made:
    r1cs, wtns, zkey = folder / "c.r1cs", folder / "c.wtns", folder / "c.zkey"
    circuit.write(r1cs, wtns)
    gpuprover.setup(r1cs, zkey, insecure=True)
    return Made(circuit, zkey, wtns)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("chain"), chain_circuit(1000))


def public_circuit(n_public: int, curve: CurveParams) -> Circuit:
    """Private y, z with y·z = p and public squares: n_public of them; one constraint if there are none."""
    builder = CircuitBuilder(curve)
    publics = [builder.public_input(i * i) for i in range(n_public)]
    y, z = builder.private_input(5), builder.private_input(9)
    product = builder.multiply(y, z)
    for i, p in enumerate(publics):
        builder.constrain(builder.constant(i), builder.constant(i), p)
        if i % 7 == 0:
            builder.multiply(product, p)
    return builder.build()


# Values that others computed ------------------------------------------------------------------


@pytest.mark.both_paths
@pytest.mark.parametrize("backend_name", ["cpu", "portable", "reference"], indirect=True)
def test_fixed_blinding_gives_the_reference_proof(curve: CurveParams, backend_name: str) -> None:
    stem = f"chain5.{curve.name}"
    result = gpuprover.prove(
        VECTORS / f"{stem}.zkey", VECTORS / f"{stem}.wtns", blinding=(7, 11), device=backend_name
    )
    assert result.proof == json.loads((VECTORS / f"{stem}.proof.json").read_text())
    assert result.public_signals == json.loads((VECTORS / f"{stem}.public.json").read_text())
    assert result.device == backend_name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("tag", "blinding"), [("r0s0", (0, 0)), ("r7s11", (7, 11))])
@pytest.mark.parametrize("name", ["multiplier2", "poseidon2", "merkle20", "sha256_1"])
def test_proofs_of_an_independent_prover(
    data_dir: Path, name: str, tag: str, blinding: tuple[int, int], threads: int
) -> None:
    folder = data_dir / "groth16"
    result = gpuprover.prove(
        folder / f"{name}.groth16.zkey", folder / f"{name}.wtns", blinding=blinding, threads=threads
    )
    want = json.loads((folder / f"{name}.{tag}.proof.json").read_text())
    assert {k: result.proof[k] for k in ("pi_a", "pi_b", "pi_c")} == {
        k: want[k] for k in ("pi_a", "pi_b", "pi_c")
    }
    assert result.public_signals == json.loads((folder / f"{name}.public.json").read_text())
    vkey = folder / f"{name}.groth16.vkey.json"
    assert gpuprover.verify(vkey, result.public_signals, result.proof)


# Shapes of circuits ------------------------------------------------------------------------------


@pytest.mark.parametrize("n_public", [0, 1, 3, 256])
def test_numbers_of_public_signals(tmp_path: Path, curve: CurveParams, n_public: int) -> None:
    made = make(tmp_path, public_circuit(n_public, curve))
    key = gpuprover.load_key(made.zkey)
    assert (key.n_public, key.constraints) == (n_public, len(made.circuit.r1cs.a.starts) - 1)
    if n_public == 0:
        assert key.constraints == 1
    result = gpuprover.prove(key, made.wtns)
    assert result.public_signals == [str(i * i) for i in range(n_public)]
    assert gpuprover.verify(key.verification_key, result.public_signals, result.proof)
    if n_public:
        wrong = [*result.public_signals[:-1], str(int(result.public_signals[-1]) + 1)]
        assert not gpuprover.verify(key.verification_key, wrong, result.proof)


@pytest.mark.parametrize(
    "circuit",
    [
        pytest.param(lambda: bits_circuit(3000, BN254, seed=4), id="mostly zeros and ones"),
        pytest.param(lambda: poseidon_circuit(BN254), id="poseidon"),
        pytest.param(lambda: chain_circuit(4093, BN254), id="domain almost full"),
        pytest.param(lambda: chain_circuit(500, BLS12_381), id="bls12-381"),
    ],
)
def test_circuits(tmp_path: Path, circuit: Any) -> None:
    made = make(tmp_path, circuit())
    key = gpuprover.load_key(made.zkey)
    for threads in (1, 2, 5):
        result = gpuprover.prove(key, made.wtns, threads=threads)
        assert gpuprover.verify(key.verification_key, result.public_signals, result.proof)


def test_sections_in_any_order(tmp_path: Path, chain: Made, rng: random.Random) -> None:
    shuffled = tmp_path / "shuffled.zkey"
    order = lambda sections: rng.sample(sections, len(sections))  # noqa: E731
    shuffled.write_bytes(reordered(chain.zkey.read_bytes(), order))
    assert shuffled.read_bytes() != chain.zkey.read_bytes()
    one, two = (gpuprover.prove(key, chain.wtns, blinding=(3, 4)).proof for key in (chain.zkey, shuffled))
    assert one == two


# The witness -----------------------------------------------------------------------------------------


def test_kinds_of_witness(chain: Made) -> None:
    kinds = [chain.wtns, str(chain.wtns), chain.wtns.read_bytes(), chain.values, chain.circuit.witness.values]
    proofs = [gpuprover.prove(chain.zkey, kind, blinding=(5, 6)).proof for kind in kinds]
    assert all(proof == proofs[0] for proof in proofs)


@pytest.mark.parametrize(
    ("witness", "error"),
    [
        ([1, 2], gpuprover.WitnessMismatch),
        ([1, -2], gpuprover.InvalidInput),
        (["x"], gpuprover.InvalidInput),
        ([1, BN254.r], gpuprover.MalformedFile),
        ([], gpuprover.MalformedFile),
        ([2, 3], gpuprover.MalformedFile),
        (np.zeros((4, 3), dtype=np.uint64), gpuprover.InvalidInput),
        (b"", gpuprover.MalformedFile),
        (b"wtns", gpuprover.MalformedFile),
        ({"inputs": {}}, gpuprover.InvalidInput),
        ({"inputs": {}, "wasm": "no/such/file"}, gpuprover.InvalidInput),
        ("no/such/file", gpuprover.InvalidInput),
    ],
)
def test_unusable_witnesses(chain: Made, witness: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        gpuprover.prove(chain.zkey, witness)


def test_witness_of_another_curve(chain: Made) -> None:
    with pytest.raises(gpuprover.WitnessMismatch, match=r"bls12-381\.fr.*bn254\.fr"):
        gpuprover.prove(chain.zkey, VECTORS / "chain5.bls12-381.wtns")


@pytest.mark.parametrize("wire", [1, 2, 3, 500, -1])
def test_unsatisfied_witness_is_refused(chain: Made, wire: int) -> None:
    values = chain.values
    values[wire] = (values[wire] + 1) % BN254.r
    secret = str(values[3])
    with pytest.raises(gpuprover.UnsatisfiedWitness, match="does not satisfy") as caught:
        gpuprover.prove(chain.zkey, values)
    assert secret not in caught.value.message.replace(str(chain.zkey), "")
    # Without the check the proof is made, and it is false.
    result = gpuprover.prove(chain.zkey, values, verify=False)
    key = gpuprover.load_key(chain.zkey)
    assert not gpuprover.verify(key.vk, result.public_signals, result.proof)


def test_bad_points_of_a_key_are_named(tmp_path: Path, chain: Made) -> None:
    data = chain.zkey.read_bytes()
    for section, name in ((5, "A points"), (7, "B2 points"), (9, "H points")):
        damaged = tmp_path / f"{section}.zkey"
        # Point 3 of the section: one bit of its x.
        size = 128 if section == 7 else 64
        content = bytearray()
        data2 = edit(data, section, lambda buffer: content.extend(buffer))  # noqa: B023
        assert data2 == data
        damaged.write_bytes(edit(data, section, put(3 * size, bytes([content[3 * size] ^ 1]))))
        with pytest.raises(gpuprover.MalformedFile, match=rf"{name}.*point 3"):
            gpuprover.prove(damaged, chain.wtns)


# Blinding --------------------------------------------------------------------------------------------


def test_blinding_is_random_and_full_width(chain: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (gpuprover.prove(chain.zkey, chain.wtns).proof for _ in range(2))
    assert all(one[k] != two[k] for k in ("pi_a", "pi_b", "pi_c"))
    key = gpuprover.load_key(chain.zkey)
    drawn = [x for _ in range(200) for x in prover.random_blinding(key)]
    assert len(set(drawn)) == len(drawn)
    assert max(drawn) > BN254.r * 0.9
    assert min(drawn) < BN254.r * 0.1
    bounds: list[int] = []
    monkeypatch.setattr(prover.secrets, "randbelow", lambda bound: bounds.append(bound) or 1)
    prover.random_blinding(key)
    assert bounds == [BN254.r, BN254.r]


# Limits ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A proof of some seconds of work."""
    return make(tmp_path_factory.mktemp("long"), chain_circuit(30000))


@pytest.mark.parametrize("phase", ["constraints", "quotient", "msm"])
@pytest.mark.parametrize("threads", [1, 2])
def test_cancel_takes_effect_soon(long: Made, phase: str, threads: int) -> None:
    gpuprover.prove(long.zkey, long.wtns, threads=threads)  # compiled
    cancel = threading.Event()
    spent: list[float] = []

    def set_it() -> None:
        spent.append(time.process_time())
        cancel.set()

    timer = threading.Timer(0.02, set_it)

    def progress(p: Progress) -> None:
        if p.phase == phase and not timer.ident:
            timer.start()

    with pytest.raises(gpuprover.Cancelled):
        gpuprover.prove(long.zkey, long.wtns, threads=threads, cancel=cancel, progress=progress)
    # 200 ms of work is the promise, of each thread: in CPU time, which other programs do not add to. The rest
    # is for a machine whose cores are shared.
    assert time.process_time() - spent[0] < threads * (0.2 + 0.3)


def test_timeout(long: Made) -> None:
    with pytest.raises(gpuprover.Timeout, match="time limit"):
        gpuprover.prove(long.zkey, long.wtns, timeout=0.05)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_senseless_memory_limits(chain: Made, limit: Any) -> None:
    with pytest.raises(gpuprover.InvalidInput, match="memory_limit"):
        gpuprover.prove(chain.zkey, chain.wtns, memory_limit=limit)


def test_memory_limit(chain: Made) -> None:
    with pytest.raises(gpuprover.OutOfMemory, match=r"memory limit: .* needs .* MiB"):
        gpuprover.prove(chain.zkey, chain.wtns, memory_limit=1)
    result = gpuprover.prove(chain.zkey, chain.wtns, memory_limit=4096)
    assert 0 < result.memory["before"] <= result.memory["peak"]


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("log_domain", [15, pytest.param(17, marks=pytest.mark.slow)])
def test_peak_memory_of_a_proof(tmp_path: Path, request: pytest.FixtureRequest, log_domain: int) -> None:
    """At most the key's size + 350 MB + six scalar vectors of the domain, for the whole process."""
    if log_domain == 15:
        long = request.getfixturevalue("long")
    else:
        long = make(tmp_path, chain_circuit((1 << log_domain) - 200))
    assert gpuprover.load_key(long.zkey).log_domain == log_domain
    code = (
        "import gpuprover, sys\n"
        "result = gpuprover.prove(sys.argv[1], sys.argv[2], threads=2)\n"
        "print(result.memory['peak'])\n"
    )
    command = [sys.executable, "-c", code, str(long.zkey), str(long.wtns)]
    peak = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    bound = long.zkey.stat().st_size + 350_000_000 + 6 * (32 << log_domain)
    print(f"peak {peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB")
    assert peak <= bound


def test_several_python_threads_prove_at_once(chain: Made) -> None:
    key = gpuprover.load_key(chain.zkey)
    results: list[gpuprover.ProofResult] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(3):
                results.append(gpuprover.prove(key, chain.wtns, threads=2))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len({json.dumps(r.proof) for r in results}) == 12
    assert all(gpuprover.verify(key.vk, r.public_signals, r.proof) for r in results)


_CROWD = """
import sys, threading
import gpuprover

key, failures = gpuprover.load_key(sys.argv[1]), []

def work():
    try:
        for _ in range(3):
            gpuprover.prove(key, sys.argv[2], threads=2)
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(failures)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc's malloc")
def test_no_kernel_uses_memory_that_it_has_freed(tmp_path: Path, curve: CurveParams) -> None:
    """Freed memory is overwritten, and all threads take theirs from one heap: what is used too long shows."""
    made = make(tmp_path, chain_circuit(1000, curve))
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_PERTURB_": "160"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", _CROWD, str(made.zkey), str(made.wtns)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert (ran.returncode, ran.stdout) == (0, "[]\n"), ran.stderr


def test_progress_and_timings(chain: Made) -> None:
    seen: list[Progress] = []
    result = gpuprover.prove(chain.zkey, chain.wtns, progress=seen.append)
    phases = list(dict.fromkeys(p.phase for p in seen))
    assert list(result.timings) == phases
    assert phases[-5:] == ["constraints", "quotient", "msm", "blinding", "verify"]
    for phase in phases:
        fractions = [p.fraction for p in seen if p.phase == phase]
        assert fractions == sorted(fractions)
        assert (fractions[0], fractions[-1]) == (0, 1)


@pytest.mark.parametrize(
    ("device", "error"),
    [("cuda", gpuprover.DeviceError), ("cuda:1", gpuprover.DeviceError), ("tpu", gpuprover.InvalidInput)],
)
def test_devices_that_cannot_be_had(chain: Made, device: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=device[:3]):
        gpuprover.prove(chain.zkey, chain.wtns, device=device)


# Verification ---------------------------------------------------------------------------------------------


def test_verify_refuses_every_change(chain: Made) -> None:
    key = gpuprover.load_key(chain.zkey)
    result = gpuprover.prove(key, chain.wtns)
    other = gpuprover.prove(key, chain.wtns)
    vkey = key.verification_key
    for part in ("pi_a", "pi_b", "pi_c"):
        assert not gpuprover.verify(vkey, result.public_signals, {**result.proof, part: other.proof[part]})
    # The negative of a point is a point of the group.
    negative = [result.proof["pi_a"][0], str(BN254.q - int(result.proof["pi_a"][1])), "1"]
    assert not gpuprover.verify(vkey, result.public_signals, {**result.proof, "pi_a": negative})
    infinity = {
        "pi_a": ["0", "1", "0"],
        "pi_b": [["0", "0"], ["1", "0"], ["0", "0"]],
        "pi_c": ["0", "1", "0"],
    }
    assert not gpuprover.verify(vkey, result.public_signals, {**result.proof, **infinity})


def test_points_outside_the_subgroup_are_refused(rng: random.Random) -> None:
    """On BLS12-381 both groups have cofactors: a point on the curve need not be in the group."""
    from gpuprover.curves import Group
    from tests.support.samples import square_root

    curve = BLS12_381
    vkey = json.loads((VECTORS / "chain5.bls12-381.vkey.json").read_text())
    proof = json.loads((VECTORS / "chain5.bls12-381.proof.json").read_text())
    public = json.loads((VECTORS / "chain5.bls12-381.public.json").read_text())
    assert gpuprover.verify(vkey, public, proof)
    x, y = 1, None
    while y is None:
        x += 1
        y = square_root(curve, Group.G1, (x**3 + curve.b) % curve.q)
    for part in ("pi_a", "pi_c"):
        with pytest.raises(gpuprover.MalformedFile, match=rf"{part}.*subgroup"):
            gpuprover.verify(vkey, public, {**proof, part: [str(x), str(y), "1"]})
        with pytest.raises(gpuprover.MalformedFile, match=r"vk_alpha_1.*subgroup"):
            gpuprover.verify({**vkey, "vk_alpha_1": [str(x), str(y), "1"]}, public, proof)


def test_batches(chain: Made, rng: random.Random) -> None:
    key = gpuprover.load_key(chain.zkey)
    good = [gpuprover.prove(key, chain.wtns, verify=False) for _ in range(3)]
    statements: list[Any] = [(good[i % 3].public_signals, good[i % 3].proof) for i in range(20)]
    assert gpuprover.verify_batch(key.vk, []) == []
    assert gpuprover.verify_batch(key.vk, statements[:1]) == [True]
    assert gpuprover.verify_batch(key.vk, statements) == [True] * 20
    bad = sorted(rng.sample(range(20), 4))
    public, proof = statements[0]
    damage = [
        (["1", *public[1:]], proof),
        (public, {**proof, "pi_c": proof["pi_a"]}),
        (public, {**proof, "pi_b": [["1", "2"], ["3", "4"], ["1", "0"]]}),  # off the curve
        (public[:-1], proof),
    ]
    for i, statement in zip(bad, damage, strict=True):
        statements[i] = statement
    assert gpuprover.verify_batch(key.vk, statements) == [i not in bad for i in range(20)]


def test_two_false_proofs_do_not_cancel_out(chain: Made) -> None:
    """Their errors are opposite, so a sum without random weights would be right."""
    key = gpuprover.load_key(chain.zkey)
    job = Job(threads=1)
    backend = open_backend("cpu", key.curve, job)
    witness = read_witness(chain.wtns)
    public = prover.public_signals(key, witness)
    proof = prover.prove(key, witness, backend)
    from gpuprover.curves import Group
    from gpuprover.systems.groth16.documents import Proof
    from tests.support.samples import row

    terms = np.stack([proof.c, row(key.curve, Group.G1, key.curve.g1)])
    shift = [backend.points.linear_combination(Group.G1, terms, [1, sign]) for sign in (1, -1)]
    pair = [(public, Proof(proof.a, proof.b, c)) for c in shift]
    assert verifier.verify_batch(key.vk, pair, backend) == [False, False]


def test_a_batch_costs_less_than_its_proofs(chain: Made) -> None:
    key = gpuprover.load_key(chain.zkey)
    result = gpuprover.prove(key, chain.wtns)
    statements = [(result.public_signals, result.proof)] * 64
    gpuprover.verify_batch(key.vk, statements)

    def seconds(call: Any) -> float:
        begun = time.process_time()
        call()
        return time.process_time() - begun

    batch = min(seconds(lambda: gpuprover.verify_batch(key.vk, statements)) for _ in range(3))
    single = min(seconds(lambda: gpuprover.verify(key.vk, *statements[0])) for _ in range(5))
    print(f"{batch / 64 * 1e3:.2f} ms each in a batch, {single * 1e3:.2f} ms alone")
    assert batch / 64 < 0.8 * single
