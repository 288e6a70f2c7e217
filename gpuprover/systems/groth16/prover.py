"""The Groth16 prover, in the order of the paper.

Groth, "On the Size of Pairing-Based Non-interactive Arguments" (EUROCRYPT 2016), section
3.2, with the quotient as circom's keys want it. Given a key and a witness w (w[0] = 1):

1. a = A·w, b = B·w: sparse products; c = a∘b on the domain, since w satisfies the circuit.
2. h = (a·b − c) on the odd coset, where the vanishing polynomial is a constant that the
   key's H points already hold: six transforms.
3. Five multi-scalar multiplications; A, B in G1 and B in G2 share the witness's digits.
4. Blinding with r, s: π_a = α + Σ w·A + r·δ, π_b = β + Σ w·B + s·δ,
   π_c = Σ w·C + Σ h·H + s·π_a + r·π_b − r·s·δ (π_b here in G1)
       = Σ w·C + Σ h·H + s·Σ w·A + r·Σ w·B + (s·α + r·β + r·s·δ). What no sum has a part in is
   computed while a device works at the sums.
"""

from __future__ import annotations

import secrets
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import UNLIMITED, Budget, Demand, KeyBases, KeyMatrices
from gpuprover.errors import InvalidInput, MalformedFile, UnsatisfiedWitness, WitnessMismatch
from gpuprover.formats.wtns import Witness
from gpuprover.limbs import Words, words_to_ints
from gpuprover.polynomial import Coset, Domain
from gpuprover.systems.groth16.documents import NAME, Proof
from gpuprover.systems.groth16.key import COEFFICIENTS, SECTIONS, ProvingKey, coefficient_dtype
from gpuprover.systems.groth16.verifier import verify


def random_blinding(key: ProvingKey) -> tuple[int, int]:
    """(r, s), uniform in [0, r) from the operating system."""
    return secrets.randbelow(key.curve.r), secrets.randbelow(key.curve.r)


def check_blinding(blinding: object) -> tuple[int, int]:
    """Fixed (r, s) as a caller gives it. Raises InvalidInput."""
    if isinstance(blinding, tuple | list) and len(blinding) == 2:
        r, s = blinding
        if all(type(x) is int and x >= 0 for x in (r, s)):
            return r, s
    raise InvalidInput("blinding: expected two integers of at least 0")


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


class Parts(NamedTuple):
    """The long sections of a key, which a device works with, as :class:`ProvingKey` has them."""

    curve: CurveParams
    n_public: int
    domain_size: int
    coefficients: NDArray[Any]
    a: Words
    b1: Words
    b2: Words
    c: Words
    h: Words


def rehearse(demand: Demand, backend: Backend) -> None:
    """The steps of a proof for a backend that only counts: all elements of an array lie at one place."""
    (matrices,) = demand.matrices
    record = np.zeros((), dtype=coefficient_dtype(demand.curve))
    a, b1, b2, c, h = (
        np.broadcast_to(np.uint64(0), (bases.size, bases.group.words(demand.curve))) for bases in demand.bases
    )
    n_public = demand.witness - len(c) - 1
    parts = Parts(
        demand.curve, n_public, matrices.rows, np.broadcast_to(record, matrices.entries), a, b1, b2, c, h
    )
    w = np.empty((demand.witness, demand.curve.scalar.limbs), dtype=np.uint64)
    sums(parts, w, backend)


def demand(curve: CurveParams, n_vars: int, n_public: int, domain_size: int, n_coefficients: int) -> Demand:
    """The demand of a proof with a key of these sizes."""
    return Demand(
        protocol=NAME,
        curve=curve,
        witness=n_vars,
        domains=(Domain(curve.scalar, domain_size.bit_length() - 1),),
        bases=(
            KeyBases("A", Group.G1, n_vars),
            KeyBases("B1", Group.G1, n_vars),
            KeyBases("B2", Group.G2, n_vars),
            KeyBases("C", Group.G1, n_vars - n_public - 1),
            KeyBases("H", Group.G1, domain_size),
        ),
        matrices=(KeyMatrices("coefficients", 2, domain_size, n_coefficients),),
        columns=(),
        together=(("A", "B1", "B2"), ("C",), ("H",)),
        rehearse=rehearse,
    )


def demand_of(key: ProvingKey) -> Demand:
    """The demand of a proof with a key."""
    return demand(key.curve, key.n_vars, key.n_public, key.domain_size, len(key.coefficients))


def sums(
    key: ProvingKey | Parts, w: Words, backend: Backend, meanwhile: Callable[[], None] = lambda: None
) -> list[list[Words]]:
    """Steps 1 to 3, all that a device does -> [[Σ w·A, Σ w·B in G1, Σ w·B in G2], [Σ w·C], [Σ h·H]].

    Args:
        w: the witness, canonical uint64[n_vars, limbs], contiguous.
        meanwhile: called once, while a device works at the sums.

    Raises:
        IndexError: an index of the coefficients is out of range.
    """
    job = backend.job
    with job.phase("constraints"):
        matrices = backend.matrices("coefficients", *_entries(key.coefficients))
        a, b = backend.spmv(matrices, w)
        backend.free(matrices)
        c = backend.mul(a, b)

    with job.phase("quotient"):
        domain = Domain(key.curve.scalar, key.domain_size.bit_length() - 1)
        backend.to_coset_in_place([a, b, c], domain, Coset.ODD)
        h = backend.multiply_subtract_in_place(a, b, c)
        backend.free(b, c)

    with job.phase("msm"):
        parts = {"A": key.a, "B1": key.b1, "B2": key.b2, "C": key.c, "H": key.h}
        bases = [backend.bases(name, points) for name, points in parts.items()]
        found = backend.msm_many(
            [(bases[:3], w), (bases[3:4], w[key.n_public + 1 :]), (bases[4:], h)], meanwhile
        )
        backend.free(h, *bases)
    return found


def prove(
    key: ProvingKey,
    witness: Witness,
    backend: Backend,
    blinding: tuple[int, int] | None = None,
    budget: Budget = UNLIMITED,
) -> Proof:
    """A proof that the witness satisfies the key's circuit; not verified here (:func:`checked`).

    Args:
        blinding: (r, s), for tests only; random by default.
        budget: what it may take of the device's memory and the host's.

    Raises:
        OutOfMemory: it cannot be done within the budget.
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
        blinds.append(combine(Group.G1, np.stack([k.alpha1, k.beta1, k.delta1]), [s, r, r * s]))

    with backend.session(key.demand, key, budget), _indices_of(key):
        (sum_a, sum_b1, sum_b2), (sum_c,), (sum_h,) = sums(key, w, backend, blind)

    with job.phase("blinding"):
        blind_a, blind_b, blind_c = blinds
        pi_a = combine(Group.G1, np.stack([sum_a, blind_a]), [1, 1])
        pi_b = combine(Group.G2, np.stack([sum_b2, blind_b]), [1, 1])
        pi_c = combine(Group.G1, np.stack([sum_c, sum_h, sum_a, sum_b1, blind_c]), [1, 1, s, r, 1])
    return Proof(pi_a, pi_b, pi_c)


def products(key: ProvingKey, w: Words, backend: Backend) -> list[Any]:
    """A·w and B·w for canonical w, uint64[n_vars, limbs], as vectors of the backend of the domain's size.

    Raises:
        MalformedFile: the key's file has changed since it was loaded, and an index in it is out of range.
    """
    with _indices_of(key):
        matrices = backend.prepare_matrices(2, key.domain_size, *_entries(key.coefficients))
        found = backend.spmv(matrices, w)
    backend.free(matrices)
    return found


def _entries(records: NDArray[Any]) -> tuple[Any, Any, Any, Words, Form]:
    """Coefficients as backends take them: matrices, rows, columns, values and their form."""
    indices = records["matrix"], records["constraint"], records["signal"]
    return *indices, records["value"], Form.DOUBLE_MONTGOMERY


@contextmanager
def _indices_of(key: ProvingKey) -> Iterator[None]:
    """An index that is out of range by now is the file's fault."""
    try:
        yield
    except IndexError:
        raise MalformedFile(
            key.path,
            f"section {COEFFICIENTS} ({SECTIONS[COEFFICIENTS]})",
            "a record is out of range by now: the file has been written to since it was loaded",
        ) from None


def check_header(key: ProvingKey, backend: Backend) -> None:
    """Raises MalformedFile for a point of the key's header outside its subgroup."""
    key.check_header_subgroups(backend)


_sound: set[int] = set()
"""``id`` of the keys that live and of which every point has been looked at."""


def check_key_once(key: ProvingKey, backend: Backend) -> None:
    """Every point of the key, when the key is first seen: what a proof that nobody verifies has to rest on.

    Points outside their subgroup, or off their curve, make a proof that reveals something of the witness.

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
