"""The Groth16 prover, in the order of the paper.

Groth, "On the Size of Pairing-Based Non-interactive Arguments" (EUROCRYPT 2016), section
3.2, with the quotient as circom's keys want it. Given a key and a witness w (w[0] = 1):

1. a = A·w, b = B·w: sparse products; c = a∘b on the domain, since w satisfies the circuit.
2. h = (a·b − c) on the odd coset, where the vanishing polynomial is a constant that the
   key's H points already hold: six transforms.
3. Five multi-scalar multiplications; A, B in G1 and B in G2 share the witness's digits.
4. Blinding with r, s: π_a = α + Σ w·A + r·δ, π_b = β + Σ w·B + s·δ,
   π_c = Σ w·C + Σ h·H + s·π_a + r·π_b − r·s·δ (π_b here in G1). What no sum has a part in is
   computed while a device works at the sums.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpuprover.backend import Backend, Form
from gpuprover.curves import Group
from gpuprover.errors import MalformedFile, UnsatisfiedWitness, WitnessMismatch
from gpuprover.formats.groth16_json import Proof
from gpuprover.formats.wtns import Witness
from gpuprover.formats.zkey import COEFFICIENTS, SECTIONS, ProvingKey
from gpuprover.groth16.verifier import verify
from gpuprover.limbs import Words, words_to_ints
from gpuprover.polynomial import Coset, Domain


def random_blinding(key: ProvingKey) -> tuple[int, int]:
    """(r, s), uniform in [0, r) from the operating system."""
    return secrets.randbelow(key.curve.r), secrets.randbelow(key.curve.r)


def check_witness_fits(key: ProvingKey, witness: Witness) -> None:
    """Raises WitnessMismatch if the witness is of another field or another number of wires."""
    if witness.curve != key.curve:
        raise WitnessMismatch(
            f"the witness is over {witness.curve.scalar.name}, the key over {key.curve.scalar.name}",
            path=witness.source,
            role="witness",
            more=f"({key.path})",
        )
    if len(witness) != key.n_vars:
        raise WitnessMismatch(
            f"{len(witness)} values, expected {key.n_vars} for the circuit",
            path=witness.source,
            role="witness",
            more=f"of {key.path}",
        )


def public_signals(key: ProvingKey, witness: Witness) -> list[int]:
    """The witness's values of the key's public signals."""
    return words_to_ints(witness.values[1 : key.n_public + 1])


def prove(
    key: ProvingKey, witness: Witness, backend: Backend, blinding: tuple[int, int] | None = None
) -> Proof:
    """A proof that the witness satisfies the key's circuit; not verified here (:func:`checked`).

    Args:
        blinding: (r, s), for tests only; random by default.
    Raises:
        WitnessMismatch: see :func:`check_witness_fits`.
        MalformedFile: the key's file has changed since it was loaded, and an index in it is out of range.
    """
    check_witness_fits(key, witness)
    job = backend.job
    w = np.require(witness.values, dtype=np.uint64, requirements=["C", "A"])
    r, s = blinding if blinding is not None else random_blinding(key)
    k, combine = key.header, backend.points.linear_combination
    blinds: list[Words] = []

    def blind() -> None:
        """What no sum has a part in."""
        blinds.append(combine(Group.G1, np.stack([k.alpha1, k.delta1]), [1, r]))
        blinds.append(combine(Group.G2, np.stack([k.beta2, k.delta2]), [1, s]))
        blinds.append(combine(Group.G1, np.stack([k.beta1, k.delta1]), [1, s]))
        blinds.append(combine(Group.G1, k.delta1[None], [-r * s]))

    with backend.proof(key.plan_header, key):
        with job.phase("constraints"):
            a, b = products(key, w, backend)
            c = backend.mul(a, b)

        with job.phase("quotient"):
            domain = Domain(key.curve.scalar, key.log_domain)
            backend.to_coset_in_place([a, b, c], domain, Coset.ODD)
            h = backend.multiply_subtract_in_place(a, b, c)
            backend.free(b, c)

        with job.phase("msm"):
            bases = [
                backend.prepare_bases(Group.G1, key.a),
                backend.prepare_bases(Group.G1, key.b1),
                backend.prepare_bases(Group.G2, key.b2),
                backend.prepare_bases(Group.G1, key.c),
                backend.prepare_bases(Group.G1, key.h),
            ]
            (sum_a, sum_b1, sum_b2), (sum_c,), (sum_h,) = backend.msm_many(
                [(bases[:3], w), (bases[3:4], w[key.n_public + 1 :]), (bases[4:], h)], blind
            )
            backend.free(h, *bases)

    with job.phase("blinding"):
        blind_a, blind_b, blind_b1, blind_c = blinds
        pi_a = combine(Group.G1, np.stack([sum_a, blind_a]), [1, 1])
        pi_b = combine(Group.G2, np.stack([sum_b2, blind_b]), [1, 1])
        pi_b1 = combine(Group.G1, np.stack([sum_b1, blind_b1]), [1, 1])
        pi_c = combine(Group.G1, np.stack([sum_c, sum_h, pi_a, pi_b1, blind_c]), [1, 1, s, r, 1])
    return Proof(pi_a, pi_b, pi_c)


def products(key: ProvingKey, w: Words, backend: Backend) -> list[Any]:
    """A·w and B·w for canonical w, uint64[n_vars, limbs], as vectors of the backend of the domain's size.

    Raises:
        MalformedFile: the key's file has changed since it was loaded, and an index in it is out of range.
    """
    records = key.coefficients
    indices = records["matrix"], records["constraint"], records["signal"]
    try:
        matrices = backend.prepare_matrices(
            2, key.domain_size, *indices, records["value"], Form.DOUBLE_MONTGOMERY
        )
        found = backend.spmv(matrices, w)
    except IndexError:
        raise MalformedFile(
            key.path,
            f"section {COEFFICIENTS} ({SECTIONS[COEFFICIENTS]})",
            "a record is out of range by now: the file has been written to since it was loaded",
        ) from None
    backend.free(matrices)
    return found


_sound: set[int] = set()
"""``id`` of the keys that live and of which every point has been looked at."""


def check_key_once(key: ProvingKey, backend: Backend) -> None:
    """Every point of the key, when the key is first seen: what a proof that nobody verifies has to rest on.

    Points outside their subgroup, or off their curve, make a proof that tells of the witness.

    Raises:
        MalformedFile: a point is bad; names the section and the point.
    """
    if id(key) not in _sound:
        with backend.job.phase("check key"):
            key.check_points(backend)
        weakref.finalize(key, _sound.discard, id(key))
        _sound.add(id(key))


def in_subgroups(key: ProvingKey, proof: Proof, backend: Backend) -> Proof:
    """The proof, if its points are in their subgroups, as all are that come of a key with such points.

    Raises:
        MalformedFile: they are not, so that the key has changed since its points were looked at.
    """
    points, g1 = backend.points, np.stack([proof.a, proof.c])
    if points.first_bad_point(Group.G1, g1) >= 0 or points.first_bad_point(Group.G2, proof.b[None]) >= 0:
        raise MalformedFile(
            key.path, "points", "they have changed since they were checked; no proof was made"
        )
    return proof


def checked(
    key: ProvingKey, witness: Witness, public: Sequence[int], proof: Proof, backend: Backend
) -> Proof:
    """The proof, if it verifies for these public signals; otherwise the reason as an exception.

    Raises:
        MalformedFile: a point of the key is bad; names the section and the point.
        UnsatisfiedWitness: the key's points are good, so the witness is not, or the key's sections do not
            belong together.
    """
    with backend.job.phase("verify"):
        try:
            if verify(key.vk, public, proof, backend):
                return proof
        except MalformedFile:
            pass  # a bad point in the key made a bad point in the proof: find it
    with backend.job.phase("check key"):
        key.check_points(backend)
    raise UnsatisfiedWitness(
        "the witness does not satisfy the circuit, or the key is inconsistent "
        "(gpuprover wtns check and zkey check tell which)",
        path=witness.source,
        role="witness",
        more=f"of {key.path}; no proof was made",
    )
