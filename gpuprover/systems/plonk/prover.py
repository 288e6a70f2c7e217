"""The PLONK prover, in the rounds of eprint 2019/953, section 8.3, as snarkjs's keys want it.

Columns a, b, c of n rows, blinded by multiples of X^n − 1:

1. [a], [b], [c]; β and γ are drawn.
2. The grand product z, [z]; α is drawn.
3. t = (gates + α·permutation + α²·(z − 1)·L_1)/(X^n − 1), in three parts, [t1], [t2], [t3]; ξ is drawn.
4. Six evaluations at ξ and ξω; v is drawn.
5. Openings W_ξ of the linearisation and W_ξω of z.

t has degree 3n + 5. Three cosets of n points give all of it but for the six highest coefficients, which are
those of a·b·c·(z − s·z(ωX)) above X^4n and follow from a few coefficients of each factor. And the last
summand of t is a division by X − 1, since L_1 = (X^n − 1)/(n·(X − 1)).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gpuprover.backend import Backend, Bases, Form, Term, Vector
from gpuprover.columns import Expression, challenge, column
from gpuprover.commitments import kzg
from gpuprover.commitments.transcript import Keccak256Transcript
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import UNLIMITED, Budget, Demand, KeyBases, KeyColumn
from gpuprover.formats.wtns import Witness
from gpuprover.limbs import Words, generator, words_to_ints
from gpuprover.plonkish import checks, permutation, wires
from gpuprover.plonkish.checks import check_header as check_header
from gpuprover.plonkish.checks import check_key_once as check_key_once
from gpuprover.plonkish.checks import in_subgroups as in_subgroups
from gpuprover.plonkish.key import Sizes, Wiring, domain_of
from gpuprover.plonkish.quotient import Numerator
from gpuprover.polynomial import Domain
from gpuprover.systems.plonk.documents import COMMITMENTS, NAME, Proof, VerificationKey
from gpuprover.systems.plonk.key import MORE_POWERS, ProvingKey
from gpuprover.systems.plonk.verifier import Challenges, first_challenges, linearisation, verify

BLINDING = 11
"""Random scalars of a proof, b1 to b11."""
COSETS = 3
CHUNKS = (1, 4)
"""Into how many parts a coset is divided; where memory is short, so that sums are made one by one, too, 4."""
_SRS = "powers of tau"


def _numerator() -> Sequence[tuple[str, Expression]]:
    """Gates and α·permutation; the column Qc has the public signals taken away.

    Each step brings in one or two polynomials, so that few are evaluated at a time.
    """
    a, b, c, z = (column(name) for name in "abcz")
    alpha, beta, gamma = challenge("alpha"), challenge("beta"), challenge("gamma")
    x = column("x")
    moved = (
        (a + beta * x + gamma)
        * (b + beta * challenge("k1") * x + gamma)
        * (c + beta * challenge("k2") * x + gamma)
    )
    return [
        ("sum 1", a * b * column("Qm") + column("Qc")),
        ("sum 2", column("sum 1") + a * column("Ql")),
        ("sum 3", column("sum 2") + b * column("Qr")),
        ("sum 4", column("sum 3") + c * column("Qo")),
        ("sum 5", column("sum 4") + alpha * moved * z),
        ("product 1", (a + beta * column("S1") + gamma) * column("z", 1)),
        ("product 2", column("product 1") * (b + beta * column("S2") + gamma)),
        ("t", column("sum 5") - alpha * column("product 2") * (c + beta * column("S3") + gamma)),
    ]


_NUMERATOR = Numerator(_numerator())


def random_blinding(curve: CurveParams) -> tuple[int, ...]:
    """b1 to b11, uniform in [0, r) from the operating system."""
    return tuple(secrets.randbelow(curve.r) for _ in range(BLINDING))


def check_blinding(blinding: object) -> tuple[int, ...]:
    """Fixed (b1, …, b11) as a caller gives it. Raises InvalidInput."""
    return wires.check_blinding(blinding, BLINDING)


def check_witness_fits(key: ProvingKey, witness: Witness) -> None:
    """Raises WitnessMismatch if the witness is of another field or another number of wires."""
    wires.check_witness_fits(key.path, key.curve, key.n_vars, witness)


def public_signals(key: ProvingKey, witness: Witness) -> list[int]:
    """The witness's values of the key's public signals."""
    return wires.public_signals(key.n_public, witness)


# Memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The long sections of a key, which a device works with, and what a transcript takes of it."""

    wiring: Wiring
    polynomials: Mapping[str, Words]
    powers: Words
    vk: VerificationKey


@dataclass(frozen=True)
class _Rehearsal:
    """The steps of a proof for a backend that only counts; equal for keys of equal sizes."""

    sizes: Sizes

    def __call__(self, demand: Demand, backend: Backend) -> None:
        curve, n = demand.curve, self.sizes.domain_size
        g1, g2 = (generator(curve, group) for group in (Group.G1, Group.G2))
        power = n.bit_length() - 1
        vk = VerificationKey(
            curve, self.sizes.n_public, power, 2, 3, dict.fromkeys(COMMITMENTS, g1), g2, "rehearsal"
        )
        parts = Parts(
            wires.hollow_wiring(curve, self.sizes),
            {name: wires.hollow(n, curve.scalar.limbs) for name in COMMITMENTS},
            wires.hollow(n + MORE_POWERS, curve.g1_words),
            vk,
        )
        w = np.empty((demand.witness, curve.scalar.limbs), dtype=np.uint64)
        rounds(parts, w, [0] * self.sizes.n_public, (1,) * BLINDING, backend, demand.chunks)


def demand(curve: CurveParams, sizes: Sizes) -> Demand:
    """The demand of a proof with a key of these sizes."""
    n, found = sizes.domain_size, None
    domain = Domain(curve.scalar, n.bit_length() - 1)
    whole = Demand(
        protocol=NAME,
        curve=curve,
        witness=sizes.n_vars,
        domains=(domain,),
        bases=(KeyBases(_SRS, Group.G1, n + MORE_POWERS),),
        matrices=(),
        columns=tuple(KeyColumn(name, n) for name in COMMITMENTS),
        together=((_SRS,),),
        rehearse=_Rehearsal(sizes),
    )
    for chunks in reversed(CHUNKS):
        if chunks == 1 or n // chunks >= chunks:
            small = Domain(curve.scalar, domain.log_n - chunks.bit_length() + 1)
            domains = (domain,) if chunks == 1 else (domain, small)
            found = replace(whole, domains=domains, chunks=chunks, leaner=found)
    assert found is not None
    return found


def demand_of(key: ProvingKey) -> Demand:
    """The demand of a proof with a key."""
    return demand(key.curve, key.sizes)


# The rounds ------------------------------------------------------------------------------------


class _Made(NamedTuple):
    """A round's polynomials: vectors of coefficients."""

    a: Vector
    b: Vector
    c: Vector
    z: Vector


def rounds(
    key: ProvingKey | Parts,
    w: Words,
    public: Sequence[int],
    blinding: Sequence[int],
    backend: Backend,
    chunks: int = 1,
) -> Proof:
    """All that a device does for a proof.

    Args:
        w: the witness, canonical uint64[n_vars, limbs].
        blinding: b1 to b11.
        chunks: see :meth:`Numerator.quotient`.

    Raises:
        IndexError: an index of the wiring is out of range.
        UselessChallenge: ξ is a root of unity.
    """
    job, curve, vk = backend.job, backend.curve, key.vk
    r, sizes = curve.r, key.wiring.sizes
    domain = domain_of(curve, sizes)
    b1, b2, b3, b4, b5, b6, b7, b8, b9, b10, b11 = (b % r for b in blinding)
    transcript = Keccak256Transcript(curve)

    with job.phase("wires"):
        srs = backend.bases(_SRS, key.powers)
        fixed = {
            name: backend.column(name, words, Form.MONTGOMERY) for name, words in key.polynomials.items()
        }
        columns = wires.columns(key.wiring, w, backend)
        a, b, c = (
            permutation.blinded(backend, domain, column, factors)
            for column, factors in zip(columns, ((b2, b1), (b4, b3), (b6, b5)), strict=True)
        )
    with job.phase("round 1"):
        wire_points = _committed(backend, srs, [a, b, c], chunks)
    beta, gamma = first_challenges(vk, transcript, public, wire_points)
    challenges = {"beta": beta, "gamma": gamma, "k1": vk.k1, "k2": vk.k2}

    with job.phase("round 2"):
        products = permutation.grand_product(
            backend, domain, dict(zip("abc", columns, strict=True)), fixed, challenges
        )
        backend.free(*columns)
        z = permutation.blinded(backend, domain, products, (b9, b8, b7))
        backend.free(products)
        (z_point,) = _committed(backend, srs, [z], chunks)
    transcript.absorb_scalars(beta, gamma)
    transcript.absorb_points(z_point)
    challenges["alpha"] = alpha = transcript.challenge()

    with job.phase("round 3"):
        made = _Made(a, b, c, z)
        parts = _quotient(backend, domain, fixed, made, public, challenges, (b10, b11), chunks)
        part_points = _committed(backend, srs, parts, chunks)
    transcript.absorb_scalars(alpha)
    transcript.absorb_points(part_points)
    xi = transcript.challenge()

    with job.phase("round 4"):
        queries = [(v, xi) for v in (a, b, c, fixed["S1"], fixed["S2"])]
        evaluations = tuple(backend.values_at([*queries, (z, xi * domain.omega % r)]))
    transcript.absorb_scalars(xi, *evaluations)
    v = transcript.challenge()

    with job.phase("round 5"):
        drawn = Challenges(beta, gamma, alpha, xi, v)
        found = linearisation(vk, drawn, evaluations, public)
        if found is None:
            raise wires.UselessChallenge
        polynomials = [
            *(fixed[name] for name in ("Qm", "Ql", "Qr", "Qo", "Qc")),
            *(z, fixed["S3"], *parts, a, b, c, fixed["S1"], fixed["S2"]),
        ]
        at_xi = kzg.Request(polynomials, found.weights, xi)
        at_next = kzg.Request([z], [1], xi * domain.omega % r)
        at_once = [[at_xi, at_next]] if chunks == 1 else [[at_xi], [at_next]]
        openings = np.concatenate([kzg.prove(backend, srs, requests) for requests in at_once])
        backend.free(a, b, c, z, *parts, *fixed.values(), srs)
    points = np.concatenate([wire_points, z_point[None], part_points, openings])
    return Proof(points, evaluations)


def _committed(backend: Backend, srs: Bases, polynomials: Sequence[Vector], chunks: int) -> Words:
    """Commitments, uint64[n, g1_words]; one after the other where memory is short."""
    if chunks == 1:
        return kzg.commit(backend, srs, polynomials)
    return np.concatenate([kzg.commit(backend, srs, [polynomial]) for polynomial in polynomials])


def _quotient(
    backend: Backend,
    domain: Domain,
    fixed: Mapping[str, Vector],
    made: _Made,
    public: Sequence[int],
    challenges: Mapping[str, int],
    blinding: tuple[int, int],
    chunks: int,
) -> list[Vector]:
    """t1, t2, t3."""
    r, n, alpha = backend.curve.r, domain.size, challenges["alpha"]
    constants = wires.constants(backend, domain, fixed["Qc"], public)
    polynomials = {**fixed, "Qc": constants, **made._asdict()}
    top = wires.short(backend, _highest(backend, domain, fixed, made, challenges))
    low, middle, high = _NUMERATOR.quotient(
        backend, domain, polynomials, challenges, COSETS, chunks=chunks, top=top
    )
    first, rest = backend.divide(made.z, 1)  # (z − 1)/(X − 1)
    backend.free(constants, rest)
    factor = alpha * alpha * pow(n, -1, r) % r
    b10, b11 = (wires.short(backend, [b]) for b in blinding)
    over = backend.combine([Term(first, 1, -n)], 1)  # of X^n, which is the next part's
    parts = [
        backend.combine([Term(low), Term(first, factor), Term(over, -factor, n), Term(b10, 1, n)], n + 1),
        backend.combine([Term(middle), Term(first, factor, -n), Term(b10, -1), Term(b11, 1, n)], n + 1),
        backend.combine([Term(high), Term(top, 1, n), Term(b11, -1)], n + MORE_POWERS),
    ]
    backend.free(low, middle, high, first, over, top, b10, b11)
    return parts


def _highest(
    backend: Backend,
    domain: Domain,
    fixed: Mapping[str, Vector],
    made: _Made,
    challenges: Mapping[str, int],
) -> list[int]:
    """The coefficients of t from X^3n on: those of its numerator from X^4n on.

    Only α·(a·b·c·z − (a + β·S1)·(b + β·S2)·(c + β·S3)·z(ωX)) reaches so high: the wires have n + 2
    coefficients, z has n + 3, and what else is added to a wire is below X^2, out of reach as n >= 8.
    """
    r, n, count = backend.curve.r, domain.size, MORE_POWERS
    beta, omega = challenges["beta"], domain.omega

    # The ``count`` coefficients below X^length of each, in one vector: they are fetched once.
    wanted = [(v, n + 2) for v in (made.a, made.b, made.c, *(fixed[name] for name in permutation.SIGMA))]
    cuts = [backend.combine([Term(v, 1, count - length)], count) for v, length in (*wanted, (made.z, n + 3))]
    joined = backend.combine([Term(cut, 1, i * count) for i, cut in enumerate(cuts)])
    values = words_to_ints(backend.download(joined))
    backend.free(*cuts, joined)
    # The highest one first.
    *tops, z = (values[i : i + count][::-1] for i in range(0, len(values), count))
    next_z = [x * pow(omega, n + 2 - i, r) % r for i, x in enumerate(z)]
    first, second = z, next_z
    for wire, sigma in zip(tops[:3], tops[3:], strict=True):
        first = _product(first, wire, r)
        second = _product(second, [x + beta * s for x, s in zip(wire, sigma, strict=True)], r)
    alpha = challenges["alpha"]
    return [alpha * (x - y) % r for x, y in zip(first, second, strict=True)][::-1]


def _product(f: Sequence[int], g: Sequence[int], r: int) -> list[int]:
    """The highest coefficients of a product, of as many of each factor."""
    return [sum(f[j] * g[i - j] for j in range(i + 1)) % r for i in range(len(f))]


# Proofs ----------------------------------------------------------------------------------------


def prove(
    key: ProvingKey,
    witness: Witness,
    backend: Backend,
    blinding: Sequence[int] | None = None,
    budget: Budget = UNLIMITED,
) -> Proof:
    """A proof that the witness satisfies the key's circuit; not verified here (:func:`checked`).

    Args:
        blinding: b1 to b11, for tests only; random by default.
        budget: what it may take of the device's memory and the host's.

    Raises:
        InvalidInput: see :func:`~gpuprover.plonkish.wires.blinded`.
        OutOfMemory: it cannot be done within the budget.
        WitnessMismatch: see :func:`check_witness_fits`.
        MalformedFile: the key's file has changed since it was loaded, and an index in it is out of range.
    """
    check_witness_fits(key, witness)
    w = np.require(witness.values, dtype=np.uint64, requirements=["C", "A"])
    public = public_signals(key, witness)

    def attempt(drawn: Sequence[int]) -> Proof:
        with backend.session(key.demand, key, budget) as demand, wires.indices_of(key.path):
            return rounds(key, w, public, drawn, backend, demand.chunks)

    return wires.blinded(blinding, lambda: random_blinding(key.curve), attempt)


def checked(
    key: ProvingKey, witness: Witness, public: Sequence[int], proof: Proof, backend: Backend
) -> Proof:
    """See :func:`gpuprover.plonkish.checks.checked`."""
    return checks.checked(verify, key, witness, public, proof, backend)
