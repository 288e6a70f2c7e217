"""Makes the vectors of this folder: python tests/vectors/make.py (a few seconds, the reference backend)."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from gpuprover import reference  # noqa: E402
from gpuprover.circuits import Circuit, chain_circuit  # noqa: E402
from gpuprover.curves import CURVES, Group  # noqa: E402
from gpuprover.devices import open_backend  # noqa: E402
from gpuprover.formats.json_files import write_json  # noqa: E402
from gpuprover.formats.ptau import read_ptau  # noqa: E402
from gpuprover.formats.r1cs import read_r1cs  # noqa: E402
from gpuprover.job import Job  # noqa: E402
from gpuprover.limbs import words_to_ints  # noqa: E402
from gpuprover.systems.groth16.documents import Proof, proof_to_json  # noqa: E402
from gpuprover.systems.groth16.from_ptau import setup_from_ptau  # noqa: E402
from gpuprover.systems.groth16.from_secret import setup_insecure  # noqa: E402
from gpuprover.systems.groth16.key import load_key  # noqa: E402
from tests.support.containers import make_ptau, reference_key  # noqa: E402
from tests.support.samples import row  # noqa: E402

TAU, ALPHA, BETA = 1234567, 89101112, 13141516
BLINDING = (7, 11)


def make(name: str, circuit: Circuit) -> None:
    curve = circuit.r1cs.curve
    backend = open_backend("reference", curve, Job(threads=1))

    def path(suffix: str) -> Path:
        return HERE / f"{name}.{suffix}"

    circuit.write(path("r1cs"), path("wtns"))
    r1cs = read_r1cs(path("r1cs"))
    path("ptau").write_bytes(make_ptau(curve, 3, TAU, ALPHA, BETA, backend))
    setup_from_ptau(r1cs, read_ptau(path("ptau")), path("initial.zkey"), backend)
    setup_insecure(r1cs, path("zkey"), backend)

    key = load_key(path("zkey"))
    witness = words_to_ints(circuit.witness.values)
    plain = reference_key(key)
    a, b, c = reference.groth16_prove(plain, witness, *BLINDING)
    public = witness[1 : key.n_public + 1]
    assert reference.groth16_verify(plain, public, reference.Groth16Proof(a, b, c))
    write_json(path("vkey.json"), key.verification_key)
    made = Proof(*(row(curve, group, p) for group, p in ((Group.G1, a), (Group.G2, b), (Group.G1, c))))
    write_json(path("proof.json"), proof_to_json(made, curve))
    write_json(path("public.json"), [str(v) for v in public])
    path("wtns").chmod(0o644)  # a witness without secrets


if __name__ == "__main__":
    for each in CURVES:
        make(f"chain5.{each.name}", chain_circuit(5, each))
