"""Midnight's verifier: all identities at one point x, and one opening that shows all evaluations.

A transcript draws θ, β, γ, the trash challenge, y, x, and for the opening x1 to x4 (:class:`Challenges`).
The opening is that of Boneh, Drake, Fisch, Gabizon (eprint 2020/081) as halo2 has it, see
:mod:`gpuprover.commitments.kzg`. Several proofs are checked by one product of two pairings, under random
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gpuprover.backend import Backend
from gpuprover.caching import Cache
from gpuprover.columns import Formula, Op
from gpuprover.commitments import kzg
from gpuprover.commitments.transcript import Blake2bTranscript
from gpuprover.curves import BLS12_381, Group
from gpuprover.errors import MalformedFile, UnsupportedFile
from gpuprover.formats.snarkjs_json import parse_public_signals
from gpuprover.limbs import Words
from gpuprover.midnight.constraint_system import domain
from gpuprover.plonkish.verification import outside
from gpuprover.systems.midnight.argument import COMMITTED_INSTANCE, PUBLIC_INSTANCE, QUOTIENT, Argument
from gpuprover.systems.midnight.documents import (
    OPENING,
    PROOF,
    Parts,
    Proof,
    VerificationKey,
    evaluations_by_query,
    parse_proof,
    take_apart,
)

BATCH = 256
"""Proofs checked by one product; bounds the memory of a batch."""
KEYS = 256
"""Keys whose points are known to be in their subgroups."""

_keys: Cache[VerificationKey, bool] = Cache(KEYS)


class Challenges(NamedTuple):
    """What the transcript draws up to the evaluations."""

    theta: int
    beta: int
    gamma: int
    trash: int
    y: int
    x: int


class OpeningChallenges(NamedTuple):
    """What the transcript draws from the evaluations on."""

    x1: int
    x2: int
    x3: int
    x4: int


def begin(key: VerificationKey, public: Sequence[int]) -> Blake2bTranscript:
    """A transcript that has taken the key and the public inputs."""
    transcript = Blake2bTranscript(BLS12_381)
    transcript.absorb_scalars(key.transcript_hash)
    transcript.absorb_points(np.zeros(BLS12_381.g1_words, dtype=np.uint64))
    transcript.absorb_scalars(len(public), *public)
    return transcript


def challenges(
    key: VerificationKey, public: Sequence[int], parts: Parts
) -> tuple[Challenges, OpeningChallenges]:
    """The challenges of a proof."""
    shape, transcript = key.argument, begin(key, public)

    def absorb(names: Sequence[str]) -> None:
        for name in names:
            transcript.absorb_points(parts.commitments[name])

    absorb(shape.advice)
    theta = transcript.challenge()
    absorb([f"L{i}{part}" for i in shape.lookups for part in "at"])
    beta, gamma = transcript.challenge(), transcript.challenge()
    absorb([*shape.products, *(f"L{i}z" for i in shape.lookups)])
    trash = transcript.challenge()
    absorb([*shape.trash, "R"])
    y = transcript.challenge()
    absorb(shape.quotients)
    x = transcript.challenge()
    transcript.absorb_scalars(*parts.evaluations)
    x1, x2 = transcript.challenge(), transcript.challenge()
    absorb([OPENING])
    x3 = transcript.challenge()
    transcript.absorb_scalars(*parts.folded)
    x4 = transcript.challenge()
    return Challenges(theta, beta, gamma, trash, y, x), OpeningChallenges(x1, x2, x3, x4)


class Lagrange(NamedTuple):
    """Lagrange polynomials at x: of row 0, of row u, the sum of those behind it, and the public inputs'."""

    first: int
    last: int
    blind: int
    public: int


def lagrange_at(k: int, usable: int, x: int, public: Sequence[int]) -> Lagrange | None:
    """See :class:`Lagrange`; None for an x in the domain, where nothing can be said."""
    r, n, omega = BLS12_381.r, 1 << k, domain(k).omega
    vanishing = (pow(x, n, r) - 1) % r
    if not vanishing:
        return None
    rows = [*range(max(1, len(public))), *range(usable, n)]
    positions = [1] * len(rows)
    for i in range(1, len(rows)):
        consecutive = rows[i] == rows[i - 1] + 1
        positions[i] = positions[i - 1] * omega % r if consecutive else pow(omega, rows[i], r)
    inverses = _inverses([x - position for position in positions], r)
    factor = vanishing * pow(n, -1, r) % r
    values = [p * i % r * factor % r for p, i in zip(positions, inverses, strict=True)]
    tail = values[-(n - usable) :]
    opened = sum(p * v for p, v in zip(public, values, strict=False)) % r
    return Lagrange(values[0], tail[0], sum(tail[1:]) % r, opened)


def _inverses(values: Sequence[int], r: int) -> list[int]:
    """1/v of each, none being 0 mod r, by one inversion."""
    before, product = [], 1
    for value in values:
        before.append(product)
        product = product * value % r
    inverse = pow(product, -1, r)
    found = [0] * len(values)
    for i in reversed(range(len(values))):
        found[i] = before[i] * inverse % r
        inverse = inverse * values[i] % r
    return found


def value_of(
    formula: Formula, cells: Mapping[tuple[str, int], int], challenges: Mapping[str, int], r: int
) -> int:
    """A formula's only result, with integers in place of its cells."""
    values = [cells[read] for read in formula.reads]
    values += formula.scalar_values(challenges, r)
    for op, a, b in formula.steps:
        x, y = values[a], values[b]
        values.append((x + y if op is Op.ADD else x - y if op is Op.SUB else x * y) % r)
    return values[formula.results[0]]


def folded(shape: Argument, cells: Mapping[tuple[str, int], int], x1: int) -> list[list[int]]:
    """For each point set and each of its points, Σ x1^i·p_i there."""
    r = BLS12_381.r
    return [
        [
            sum(
                weight * cells[name, t]
                for weight, name in zip(kzg.powers(x1, len(names), r), names, strict=True)
            )
            % r
            for t in rotations
        ]
        for rotations, names in shape.sets
    ]


def _opening(key: VerificationKey, public: Sequence[int], parts: Parts) -> kzg.Opening | None:
    """What the proof claims, or None for one that cannot hold."""
    shape, k = key.argument, key.key.k
    r, n, omega = BLS12_381.r, 1 << key.key.k, domain(key.key.k).omega
    drawn, opening = challenges(key, public, parts)
    x = drawn.x
    lagrange = lagrange_at(k, shape.system.usable(k), x, public)
    if lagrange is None:
        return None

    cells = evaluations_by_query(shape, parts.evaluations)
    rows = {
        (PUBLIC_INSTANCE, 0): lagrange.public,
        ("x", 0): x,
        ("l_0", 0): lagrange.first,
        ("l_last", 0): lagrange.last,
        ("active", 0): (1 - lagrange.last - lagrange.blind) % r,
    }
    numerator = value_of(shape.numerator, cells | rows, drawn._asdict(), r)
    cells[QUOTIENT, 0] = numerator * pow(pow(x, n, r) - 1, -1, r) % r

    # The polynomials q_j, f and what they are at x3.
    points, weights = [parts.commitments[OPENING]], []
    x3, total, at_x3 = opening.x3, 0, 0
    outer = kzg.powers(opening.x4, len(shape.sets) + 1, r)
    inner = kzg.powers(opening.x2, len(shape.sets), r)
    for j, ((rotations, names), values) in enumerate(
        zip(shape.sets, folded(shape, cells, opening.x1), strict=True)
    ):
        places = [x * pow(omega, t, r) % r for t in rotations]
        rest = kzg.interpolate(places, values, r)
        factors = [kzg.Factor(1, place) for place in places]
        divisor = kzg.vanishing(factors, x3, r)
        if not divisor:
            return None
        difference = parts.folded[j] - kzg.value(rest, x3, r)
        at_x3 += inner[j] * difference % r * pow(divisor, -1, r)
        total += outer[j] * parts.folded[j]
        for weight, name in zip(kzg.powers(opening.x1, len(names), r), names, strict=True):
            factor = outer[j] * weight % r
            if name == QUOTIENT:
                for i, limb in enumerate(shape.quotients):
                    points.append(parts.commitments[limb])
                    weights.append(factor * pow(x, i * (n - 1), r) % r)
            elif name != COMMITTED_INSTANCE:
                points.append((key if name in key.commitments else parts).commitments[name])
                weights.append(factor)
    total += outer[-1] * at_x3
    return kzg.Opening(np.stack(points), (outer[-1], *weights), x3, total % r, parts.commitments[PROOF])


def _check_key(key: VerificationKey, backend: Backend, source: str) -> None:
    if _keys.get(key) is not None:
        return
    names = [*key.argument.fixed, *key.argument.sigma]
    bad = backend.points.first_bad_point(Group.G1, np.stack([key.commitments[name] for name in names]))
    if bad >= 0:
        raise outside(source, "verification key", names[bad])
    if backend.points.first_bad_point(Group.G2, key.s_g2[None]) >= 0:
        raise outside(source, "verification key", "s_g2")
    _keys.put(key, True, 1)


def _parts(key: VerificationKey, proof: Proof, backend: Backend, source: str) -> Parts:
    """The proof taken apart, its points in their subgroup. Raises MalformedFile."""
    try:
        parts = take_apart(key.argument, proof.data)
    except ValueError as error:
        name, _, problem = str(error).rpartition(": ")
        raise MalformedFile(source, name or "length", problem, role="proof") from None
    names = list(parts.commitments)
    points: Words = np.stack([parts.commitments[name] for name in names])
    bad = backend.points.first_bad_point(Group.G1, points)
    if bad >= 0:
        raise outside(source, "proof", names[bad])
    return parts


def verify(
    key: VerificationKey,
    public: Sequence[int],
    proof: Proof,
    backend: Backend,
    key_source: str = "verification key",
    proof_source: str = "proof",
) -> bool:
    """Whether the proof holds for the public inputs (integers in [0, r), n_public of them).

    Raises:
        MalformedFile: the proof has another length than the key's proofs, a point off the curve or outside
            its subgroup, or a scalar out of range; or a point of the key is outside its subgroup.
    """
    _check_key(key, backend, key_source)
    parts = _parts(key, proof, backend, proof_source)
    opening = _opening(key, public, parts)
    return opening is not None and kzg.check(backend.points, key.s_g2, [opening])


def verify_many(
    statements: Sequence[tuple[VerificationKey, Sequence[int], Proof]], backend: Backend
) -> list[bool]:
    """For each (key, public inputs, proof) whether it holds; keys may differ, if their parameters do not.

    A damaged proof is False.

    Raises:
        MalformedFile: a point of a key lies outside its subgroup.
        ValueError: keys of several parameters.
    """
    results = [False] * len(statements)
    if not statements:
        return results
    s_g2 = statements[0][0].s_g2
    for start in range(0, len(statements), BATCH):
        claims: list[tuple[int, list[kzg.Opening]]] = []
        for i, (key, public, proof) in enumerate(statements[start : start + BATCH], start):
            backend.job.check()
            if not np.array_equal(key.s_g2, s_g2):
                raise ValueError("proofs with several parameters in one batch")
            _check_key(key, backend, key.source)
            try:
                parts = _parts(key, proof, backend, "proof")
            except MalformedFile:
                continue
            opening = _opening(key, public, parts)
            if opening is not None:
                claims.append((i, [opening]))
        holds = kzg.check_each(backend.points, s_g2, [openings for _, openings in claims])
        for (i, _), value in zip(claims, holds, strict=True):
            results[i] = value
    return results


def verify_documents(
    key: VerificationKey, statements: Sequence[tuple[object, object]], backend: Backend
) -> list[bool]:
    """As :func:`verify_many`, for one key and pairs of documents (public inputs, proof)."""
    good: list[tuple[int, tuple[VerificationKey, Sequence[int], Proof]]] = []
    for i, (signals, document) in enumerate(statements):
        try:
            public = parse_public_signals(signals, BLS12_381, key.n_public)
            good.append((i, (key, public, parse_proof(document, BLS12_381))))
        except (MalformedFile, UnsupportedFile):
            continue
    results = [False] * len(statements)
    holds = verify_many([statement for _, statement in good], backend)
    for (i, _), value in zip(good, holds, strict=True):
        results[i] = value
    return results
