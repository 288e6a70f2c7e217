"""Midnight's prover, in the rounds of its transcript.

1. Advice columns, blinded from row u on; θ is drawn.
2. Permuted lookups; β and γ are drawn.
3. Products of the permutation, in sets, and of the lookups; the trash challenge is drawn.
4. Trash columns and a random polynomial R; y is drawn.
5. The quotient h of all identities by X^n − 1, in parts of n − 1 coefficients, each blinded against the
   next; x is drawn.
6. Evaluations, and one opening of all of them.

Columns are committed as values, by the Lagrange polynomials' points, so that small values make short sums;
R, h and openings as coefficients. h has at most (d − 1)·(n − 1) coefficients: d − 1 cosets of n points give
it (:mod:`gpuprover.plonkish.quotient`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

import numpy as np

from gpuprover.backend import Backend, Bases, Form, Term, Vector
from gpuprover.columns import Formula, challenge, column, compile_formula, fold
from gpuprover.commitments import kzg
from gpuprover.commitments.transcript import Blake2bTranscript
from gpuprover.curves import BLS12_381, Group
from gpuprover.demand import UNLIMITED, Budget, Demand, KeyBases, KeyColumn
from gpuprover.errors import MalformedFile, UnsatisfiedWitness
from gpuprover.limbs import Words, words_to_ints
from gpuprover.midnight.architecture import Architecture
from gpuprover.midnight.constraint_system import domain as domain_of
from gpuprover.midnight.keys import VerifierKey
from gpuprover.midnight.profile import Profile
from gpuprover.plonkish import wires
from gpuprover.plonkish.quotient import Numerator, shifts
from gpuprover.polynomial import Direction, Domain
from gpuprover.systems.midnight import lookups
from gpuprover.systems.midnight.argument import (
    COMMITTED_INSTANCE,
    PUBLIC_INSTANCE,
    QUOTIENT,
    RANDOM,
    Argument,
    argument,
)
from gpuprover.systems.midnight.diagnosis import broken_identity, padded
from gpuprover.systems.midnight.documents import NAME, Proof, VerificationKey, take_apart
from gpuprover.systems.midnight.randomness import NoRandomness, Randomness
from gpuprover.systems.midnight.verifier import begin, verify
from gpuprover.systems.midnight.witness import Statement, check_statement

if TYPE_CHECKING:
    from gpuprover.systems.midnight.key import ProvingKey

LAGRANGE, SUFFIXES, POWERS = "Lagrange points", "sums of Lagrange points", "powers of s"
CHUNKS = (1, 4)
"""Into how many parts a coset is divided; where memory is short, 4."""
ROWS, ON_COSET = " rows", " on coset "
"""Parts of names of columns that are given as values: on the rows, or on a coset."""
SELECTORS = ("l_0", "l_last", "active")
"""Columns that are 1 on the first row, on row u, on the rows before it."""
KEPT_BYTES = 1 << 28
"""Bytes up to which a key's values on all cosets are kept: two thirds of a proof's transforms."""
_R, _LIMBS = BLS12_381.r, BLS12_381.scalar.limbs


# Formulas --------------------------------------------------------------------------------------


class _Formulas:
    """The formulas of one architecture."""

    def __init__(self, shape: Argument) -> None:
        beta, gamma = challenge("beta"), challenge("gamma")
        self.compressed = compile_formula([part for i in shape.lookups for part in shape.compressed(i)])
        """A and T of each lookup."""
        self.permutation: list[Formula] = []
        """Numerator and denominator of each set's product."""
        for places in shape.system.sets:
            positions, permuted = shape.product_terms(places)
            both = []
            for first, *others in (positions, permuted):
                for other in others:
                    first = first * other
                both.append(first)
            self.permutation.append(compile_formula(both))
        a, t, permuted_a, permuted_t = (column(name) for name in ("A", "T", "A'", "T'"))
        self.lookup = compile_formula([(a + beta) * (t + gamma), (permuted_a + beta) * (permuted_t + gamma)])
        self.trash = compile_formula(
            [fold(trash.constraints, challenge("trash")) for trash in shape.system.trash]
        )
        y, steps = challenge("y"), []
        for i, (_, terms) in enumerate(shape.identities()):
            before = [column(f"sum {i - 1}")] if i else []
            steps.append((f"sum {i}", fold([*before, *terms], y)))
        self.numerator = Numerator(steps)

    @cached_property
    def extended(self) -> tuple[str, ...]:
        """Columns of the numerator that are the same in every proof with a key."""
        read = self.numerator.columns
        return tuple(sorted(name for name in read if name[0] in "FS" or name in ("x", *SELECTORS)))

    @cached_property
    def rows(self) -> frozenset[str]:
        """Fixed columns of which the values are read, too."""
        read = [*self.compressed.columns, *self.trash.columns]
        read += [name for formula in self.permutation for name in formula.columns]
        return frozenset(name for name in read if name[0] in "FS")


@lru_cache(maxsize=32)
def _formulas(shape: Argument) -> _Formulas:
    return _Formulas(shape)


# Memory ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Parts:
    """What a device works with of a key.

    Attributes:
        vk: the verification key.
        values, coefficients: fixed columns and σ by name, Montgomery uint64[n, limbs].
        extended: what every quotient takes of the key: for each coset its polynomials' values there, as
            ``values``; () where they are too large to keep.
        lagrange, powers: points of the parameters, uint64[n, g1_words].
        suffixes: Σ lagrange[j] over j >= i, as ``lagrange``.
    """

    vk: VerificationKey
    values: Mapping[str, Words] = field(repr=False)
    coefficients: Mapping[str, Words] = field(repr=False)
    lagrange: Words = field(repr=False)
    suffixes: Words = field(repr=False)
    powers: Words = field(repr=False)
    extended: Sequence[Mapping[str, Words]] = field(default=(), repr=False)


@dataclass(frozen=True)
class _Rehearsal:
    """The steps of a proof for a backend that only counts; equal for keys of equal shapes.

    Attributes:
        profile, architecture, k, n_public: the shape.
    """

    profile: Profile
    architecture: Architecture
    k: int
    n_public: int

    def __call__(self, demand: Demand, backend: Backend) -> None:
        n, shape = 1 << self.k, argument(self.profile, self.architecture)
        fixed, sigma = (
            np.zeros((len(names), BLS12_381.g1_words), dtype=np.uint64)
            for names in (shape.fixed, shape.sigma)
        )
        key = VerifierKey(
            self.profile, self.architecture, 0, self.n_public, self.k, fixed, sigma, "rehearsal"
        )
        vk = VerificationKey(key)
        hollow = wires.hollow(n, _LIMBS)
        columns = dict.fromkeys((*shape.fixed, *shape.sigma), hollow)
        points = wires.hollow(n, BLS12_381.g1_words)
        extended = [dict.fromkeys(_formulas(shape).extended, hollow)] * shape.limbs
        kept = extended if demand.chunks == 1 and is_kept(vk) else ()
        parts = Parts(vk, columns, columns, points, points, points, kept)
        advice = np.broadcast_to(np.uint64(0), (shape.system.advice, n, _LIMBS))
        public = [0] * self.n_public
        rounds(parts, advice, public, NoRandomness(), backend, demand.chunks, lambda *pair: pair)


def _sums(shape: Argument) -> tuple[int, int, int]:
    """A proof's sums over Lagrange points, sums of these, and powers of s."""
    looked_up = len(shape.lookups)
    columns = shape.system.advice + len(shape.products) + 2 * looked_up + len(shape.trash)
    return columns, looked_up, shape.limbs + 3


def is_kept(vk: VerificationKey) -> bool:
    """Whether a key's values on all cosets are kept."""
    return kept_bytes(vk) <= KEPT_BYTES


def kept_bytes(vk: VerificationKey) -> int:
    """Bytes of a key's values on all cosets."""
    shape = vk.argument
    return (8 * _LIMBS << vk.key.k) * shape.limbs * len(_formulas(shape).extended)


def extended(
    vk: VerificationKey, coefficients: Mapping[str, Words], backend: Backend
) -> list[dict[str, Words]]:
    """A key's values on the cosets of its quotient, as :attr:`Parts.extended`."""
    shape, domain = vk.argument, domain_of(vk.key.k)
    polynomials = {name: backend.upload(words, Form.MONTGOMERY) for name, words in coefficients.items()}
    polynomials |= _selectors(backend, domain, shape.system.usable(vk.key.k))
    found = []
    for g in shifts(domain, shape.limbs):
        there = {}
        for name in _formulas(shape).extended:
            if name == "x":
                v = backend.powers(domain.size, domain.omega, g)
            else:
                (v,) = backend.extend(polynomials[name], domain, [g])
            there[name] = backend.download(v, Form.MONTGOMERY)
            backend.free(v)
        found.append(there)
    backend.free(*polynomials.values())
    return found


def demand(vk: VerificationKey) -> Demand:
    """The demand of a proof with a key of this verification key."""
    shape, n, found = vk.argument, 1 << vk.key.k, None
    domain = domain_of(vk.key.k)
    names = [*shape.fixed, *shape.sigma]
    formulas, parameters = _formulas(shape), f"2^{vk.key.k}, {vk.s_g2.tobytes().hex()}"
    rows = [name + ROWS for name in names if name in formulas.rows]
    extended = [f"{name}{ON_COSET}{j}" for j in range(shape.limbs) for name in formulas.extended]
    whole = Demand(
        protocol=NAME,
        curve=BLS12_381,
        witness=shape.system.advice * n,
        domains=(domain,),
        bases=tuple(
            KeyBases(name, Group.G1, n, sums=sums, shared=parameters)
            for name, sums in zip((LAGRANGE, SUFFIXES, POWERS), _sums(shape), strict=True)
        ),
        matrices=(),
        columns=tuple(KeyColumn(name, n) for name in (*names, *rows)),
        together=((LAGRANGE,), (SUFFIXES,), (POWERS,)),
        rehearse=_Rehearsal(vk.key.profile, vk.key.architecture, vk.key.k, vk.n_public),
    )
    for chunks in reversed(CHUNKS):
        if chunks == 1 or n // chunks >= chunks:
            small = Domain(domain.field, domain.log_n - chunks.bit_length() + 1, domain.generator)
            domains = (domain,) if chunks == 1 else (domain, small)
            more = tuple(KeyColumn(name, n) for name in extended) if chunks == 1 and is_kept(vk) else ()
            columns = whole.columns + more
            found = replace(whole, domains=domains, columns=columns, chunks=chunks, leaner=found)
    assert found is not None
    return found


# The rounds ------------------------------------------------------------------------------------


class _Device(NamedTuple):
    """What all rounds use."""

    backend: Backend
    domain: Domain
    shape: Argument
    usable: int
    lagrange: Bases
    suffixes: Bases
    powers: Bases
    transcript: Blake2bTranscript
    randomness: Randomness
    data: list[bytes]
    chunks: int
    permuted: Callable[[Words, Words], tuple[Words, Words]]

    def coefficients(self, values: Vector) -> Vector:
        """The polynomial of a column, which stays."""
        return self.backend.ntt(self.backend.combine([Term(values)]), self.domain, Direction.INVERSE)

    def commit(self, bases: Bases, polynomials: Sequence[Vector | Words]) -> None:
        """Commitments, for the transcript and the proof; one after the other where memory is short."""
        if self.chunks == 1:
            points = kzg.commit(self.backend, bases, polynomials)
        else:
            points = np.concatenate([kzg.commit(self.backend, bases, [p]) for p in polynomials])
        self.data.append(self.transcript.absorb_points(points))

    def scalars(self, *values: int) -> None:
        """Scalars, for the transcript and the proof."""
        self.data.append(self.transcript.absorb_scalars(*values))

    def blinded(self, values: Vector, kept: int, factor: int = 1) -> Vector:
        """The first ``kept`` values, times a factor, and random ones behind them, n in all."""
        backend, n = self.backend, self.domain.size
        head = backend.combine([Term(values)], kept)
        tail = backend.upload(self.randomness.scalars(n - kept))
        found = backend.combine([Term(head, factor), Term(tail, 1, kept)], n)
        backend.free(head, tail)
        return found


def rounds(
    key: Parts,
    advice: Words,
    public: Sequence[int],
    randomness: Randomness,
    backend: Backend,
    chunks: int = 1,
    permuted: Callable[[Words, Words], tuple[Words, Words]] = lookups.permuted,
) -> Proof:
    """All that a device does for a proof.

    Args:
        advice: canonical uint64[columns, n, limbs]; rows from u on are not looked at.
        public: the public inputs, at most u.
        chunks: see :meth:`Numerator.quotient`.
        permuted: the order of lookups; a rehearsal has no values to order.

    Raises:
        UnsatisfiedWitness: a lookup does not hold; the message names its row.
    """
    vk, shape, job = key.vk, key.vk.argument, backend.job
    k, formulas = vk.key.k, _formulas(shape)
    domain = domain_of(k)
    n, omega, usable = domain.size, domain.omega, shape.system.usable(k)
    challenges: dict[str, int] = {}
    # Values and coefficients of polynomials by name.
    rows: dict[str, Vector] = {}
    polynomials: dict[str, Vector] = {}

    with job.phase("columns"):
        device = _Device(
            backend,
            domain,
            shape,
            usable,
            backend.bases(LAGRANGE, key.lagrange),
            backend.bases(SUFFIXES, key.suffixes),
            backend.bases(POWERS, key.powers),
            begin(vk, public),
            randomness,
            [],
            chunks,
            permuted,
        )
        for name in (*shape.fixed, *shape.sigma):
            polynomials[name] = backend.column(name, key.coefficients[name], Form.MONTGOMERY)
            if name in formulas.rows:
                rows[name] = backend.column(name + ROWS, key.values[name], Form.MONTGOMERY)
        held = [*polynomials.values(), *rows.values()]
        blinded = _blinded_advice(advice, usable, randomness)
        device.commit(device.lagrange, list(blinded))
        for name, words in zip(shape.advice, blinded, strict=True):
            rows[name] = backend.upload(words)
            polynomials[name] = device.coefficients(rows[name])
        rows[PUBLIC_INSTANCE] = padded(backend, public, n)
        polynomials[PUBLIC_INSTANCE] = device.coefficients(rows[PUBLIC_INSTANCE])
    challenges["theta"] = device.transcript.challenge()

    with job.phase("lookups"):
        compressed = backend.evaluate(formulas.compressed, rows, challenges)
        ordered: list[Vector] = []
        for i in shape.lookups:
            pair = _permuted(device, i, compressed[2 * i], compressed[2 * i + 1])
            _commit_permuted(device, vk, i, pair, compressed[2 * i + 1], challenges["theta"])
            ordered += pair
            for part, values in zip("at", pair, strict=True):
                polynomials[f"L{i}{part}"] = device.coefficients(values)
    challenges["beta"] = device.transcript.challenge()
    challenges["gamma"] = device.transcript.challenge()

    with job.phase("products"):
        products = _permutation_products(device, formulas, rows, challenges)
        for i in shape.lookups:
            columns = dict(
                zip(
                    ("A", "T", "A'", "T'"),
                    (*compressed[2 * i : 2 * i + 2], *ordered[2 * i : 2 * i + 2]),
                    strict=True,
                )
            )
            over, under = backend.evaluate(formulas.lookup, columns, challenges)
            product = backend.running_product(over, under)
            products.append(device.blinded(product, usable + 1))
            backend.free(over, under, product)
        backend.free(*compressed, *ordered)
        device.commit(device.lagrange, products)
        names = (*shape.products, *(f"L{i}z" for i in shape.lookups))
        for name, values in zip(names, products, strict=True):
            polynomials[name] = device.coefficients(values)
        backend.free(*products)
    challenges["trash"] = device.transcript.challenge()

    with job.phase("random"):
        if shape.trash:
            found = backend.evaluate(formulas.trash, rows, challenges)
            device.commit(device.lagrange, found)
            for name, values in zip(shape.trash, found, strict=True):
                polynomials[name] = device.coefficients(values)
            backend.free(*found)
        backend.free(*(v for name, v in rows.items() if name[0] in "AI"))
        polynomials[RANDOM] = backend.upload(randomness.scalars(n))
        device.commit(device.powers, [polynomials[RANDOM]])
    challenges["y"] = device.transcript.challenge()

    with job.phase("quotient"):
        known = [
            {
                name: backend.column(f"{name}{ON_COSET}{j}", words, Form.MONTGOMERY)
                for name, words in there.items()
            }
            for j, there in enumerate(key.extended if chunks == 1 else ())
        ]
        limbs = _quotient(device, formulas, polynomials, challenges, known)
        backend.free(*(v for there in known for v in there.values()))
        device.commit(device.powers, limbs)
    x = device.transcript.challenge()

    with job.phase("evaluations"):
        queries = [
            (polynomials[q.column], x * pow(omega, q.rotation, _R) % _R)
            for q in shape.evaluated
            if q.column != COMMITTED_INSTANCE
        ]
        # The empty instance column is the first one that is evaluated.
        device.scalars(0, *backend.values_at(queries))

    with job.phase("opening"):
        weights = kzg.powers(pow(x, n - 1, _R), len(limbs), _R)
        polynomials[QUOTIENT] = backend.combine([Term(v, w) for v, w in zip(limbs, weights, strict=True)], n)
        backend.free(*limbs)
        _open(device, polynomials, x)
        made = [v for name, v in polynomials.items() if name[0] not in "FS"]
        backend.free(*made, *held, device.lagrange, device.suffixes, device.powers)
    return Proof(b"".join(device.data))


def _blinded_advice(advice: Words, usable: int, randomness: Randomness) -> Words:
    found = np.array(advice, dtype=np.uint64)
    behind = found.shape[1] - usable
    for words in found:
        words[usable:] = randomness.scalars(behind)
    return found


def _permuted(device: _Device, i: int, inputs: Vector, table: Vector) -> list[Vector]:
    """A' and T' of lookup i, blinded. The order is found on the host: it is short beside the sums."""
    backend, usable, n = device.backend, device.usable, device.domain.size
    words = (backend.download(v, Form.MONTGOMERY)[:usable] for v in (inputs, table))
    try:
        pair = device.permuted(*words)
    except lookups.NotInTable as error:
        raise UnsatisfiedWitness(
            f"the witness does not satisfy the circuit: lookup {i} does not hold on row {error.row}",
            role="witness",
            more="no proof was made",
        ) from None
    found = []
    for values in pair:
        head = backend.upload(values, Form.MONTGOMERY)
        tail = backend.upload(device.randomness.scalars(n - usable))
        found.append(backend.combine([Term(head), Term(tail, 1, usable)], n))
        backend.free(head, tail)
    return found


def _commit_permuted(
    device: _Device, vk: VerificationKey, i: int, pair: Sequence[Vector], table: Vector, theta: int
) -> None:
    """Commitments to A' and T', by sums that are short where a few values are looked up often.

    A' has runs of equal values, so that its differences from row to row are mostly 0. T' differs from the
    table T where a run begins, and T is a combination of columns whose commitments the key has.
    """
    backend, n = device.backend, device.domain.size
    a, t = pair
    columns = device.shape.table_columns(i)
    steps = backend.combine([Term(a), Term(a, -1, 1)], n)
    rest = backend.combine([Term(t), Term(table, -1)], n) if columns else t
    requests = [([device.suffixes], steps), ([device.lagrange], rest)]
    if device.chunks == 1:
        (a_point,), (t_point,) = backend.msm_many(requests)
    else:
        (a_point,), (t_point,) = (backend.msm_many([request])[0] for request in requests)
    if columns:
        weights = kzg.powers(theta, len(columns), _R)[::-1]
        known = np.stack([vk.commitments[name] for name in columns])
        t_point = backend.points.linear_combination(
            Group.G1, np.concatenate([known, t_point[None]]), [*weights, 1]
        )
        backend.free(rest)
    backend.free(steps)
    device.data.append(device.transcript.absorb_points(np.stack([a_point, t_point])))


def _permutation_products(
    device: _Device, formulas: _Formulas, rows: Mapping[str, Vector], challenges: Mapping[str, int]
) -> list[Vector]:
    """z of each set: it goes on from the last row of the one before."""
    backend, usable, n = device.backend, device.usable, device.domain.size
    x = backend.powers(n, device.domain.omega)
    products = []
    for formula in formulas.permutation:
        over, under = backend.evaluate(formula, {**rows, "x": x}, challenges)
        products.append(backend.running_product(over, under))
        backend.free(over, under)
    ends = [backend.combine([Term(product, 1, -usable)], 1) for product in products]
    joined = backend.combine([Term(end, 1, i) for i, end in enumerate(ends)])
    last = words_to_ints(backend.download(joined))
    backend.free(x, joined, *ends)
    found, start = [], 1
    for product, end in zip(products, last, strict=True):
        found.append(device.blinded(product, usable + 1, start))
        start = start * end % _R
    backend.free(*products)
    return found


def _quotient(
    device: _Device,
    formulas: _Formulas,
    polynomials: Mapping[str, Vector],
    challenges: Mapping[str, int],
    extended: Sequence[Mapping[str, Vector]],
) -> list[Vector]:
    """h_0, h_1, … of n coefficients each."""
    backend, n, usable, limbs = device.backend, device.domain.size, device.usable, device.shape.limbs
    selectors = {} if extended else _selectors(backend, device.domain, usable)
    parts = formulas.numerator.quotient(
        backend,
        device.domain,
        {**polynomials, **selectors},
        challenges,
        limbs,
        chunks=device.chunks,
        extended=extended,
    )
    backend.free(*selectors.values())
    blinding = [int(x) for x in words_to_ints(device.randomness.scalars(limbs - 1))]
    found = []
    for i in range(limbs):
        # Part i of n coefficients begins i places after limb i of n − 1.
        pieces = [Term(parts[i], 1, i)]
        if i:
            pieces.append(Term(parts[i - 1], 1, i - n))
        limb = backend.combine(pieces, n - 1)
        terms = [Term(limb)]
        extra = []
        if i < limbs - 1:
            extra.append((blinding[i], n - 1))
        if i:
            extra.append((-blinding[i - 1], 0))
        short = [wires.short(backend, [value]) for value, _ in extra]
        terms += [Term(v, 1, place) for v, (_, place) in zip(short, extra, strict=True)]
        found.append(backend.combine(terms, n))
        backend.free(limb, *short)
    backend.free(*parts)
    return found


def _selectors(backend: Backend, domain: Domain, usable: int) -> dict[str, Vector]:
    """The coefficients of :data:`SELECTORS`."""
    found = {}
    for name, start, end in zip(SELECTORS, (0, usable, 0), (1, usable + 1, usable), strict=True):
        words = np.zeros((domain.size, _LIMBS), dtype=np.uint64)
        words[start:end, 0] = 1
        found[name] = backend.ntt(backend.upload(words), domain, Direction.INVERSE)
    return found


def _open(device: _Device, polynomials: Mapping[str, Vector], x: int) -> None:
    """The opening of all evaluations."""
    backend, shape, omega = device.backend, device.shape, device.domain.omega
    x1, x2 = device.transcript.challenge(), device.transcript.challenge()
    combined, factors = [], []
    for rotations, names in shape.sets:
        terms = [
            Term(polynomials[name], weight)
            for weight, name in zip(kzg.powers(x1, len(names), _R), names, strict=True)
            if name != COMMITTED_INSTANCE
        ]
        combined.append(backend.combine(terms, device.domain.size))
        factors.append([kzg.Factor(1, x * pow(omega, t, _R) % _R) for t in rotations])
    f = kzg.quotient_of_sets(backend, combined, factors, x2)
    device.commit(device.powers, [f])
    x3 = device.transcript.challenge()
    device.scalars(*backend.values_at([(q, x3) for q in combined]))
    x4 = device.transcript.challenge()
    request = kzg.Request([*combined, f], kzg.powers(x4, len(combined) + 1, _R), x3)
    device.data.append(device.transcript.absorb_points(kzg.prove(backend, device.powers, [request])))
    backend.free(f, *combined)


# Proofs ----------------------------------------------------------------------------------------


def check_witness_fits(key: ProvingKey, witness: Statement) -> None:
    """Raises WitnessMismatch for a table of another shape, or another number of public inputs."""
    check_statement(key, witness, key.vk.argument.system.advice, key.constraints)


def public_signals(key: ProvingKey, witness: Statement) -> list[int]:
    """The statement's public inputs."""
    return list(witness.public)


def prove(
    key: ProvingKey,
    witness: Statement,
    backend: Backend,
    blinding: bytes | None = None,
    budget: Budget = UNLIMITED,
) -> Proof:
    """A proof of a statement; not verified here (:func:`checked`).

    Args:
        blinding: a seed for all that is random, for tests only; None: the operating system's randomness.
        budget: what it may take of the device's memory and the host's.

    Raises:
        OutOfMemory: it cannot be done within the budget.
        WitnessMismatch: see :func:`check_witness_fits`.
        UnsatisfiedWitness: a lookup does not hold; names it and the row.
    """
    check_witness_fits(key, witness)
    parts = key.parts
    with backend.session(key.demand, parts, budget) as demand:
        return rounds(parts, witness.advice, witness.public, Randomness(blinding), backend, demand.chunks)


_sound: WeakSet[ProvingKey] = WeakSet()
"""Keys of which every point has been looked at."""


def check_header(key: ProvingKey, backend: Backend) -> None:
    """Raises MalformedFile for a commitment outside its subgroup."""
    key.check_header_points(backend)


def check_key_once(key: ProvingKey, backend: Backend) -> None:
    """Every point of key and parameters, when the key is first seen: for proofs that nobody verifies.

    Raises:
        MalformedFile: a point is bad.
    """
    if key not in _sound:
        with backend.job.phase("check key"):
            key.check_points(backend)
        _sound.add(key)


def in_subgroups(key: ProvingKey, proof: Proof, backend: Backend) -> Proof:
    """The proof, if its points are in their subgroup. Raises MalformedFile."""
    points = take_apart(key.vk.argument, proof.data).commitments
    if backend.points.first_bad_point(Group.G1, np.stack([*points.values()])) >= 0:
        raise MalformedFile(
            key.path, "points", "they have changed since they were checked; no proof was made"
        )
    return proof


def checked(
    key: ProvingKey, witness: Statement, public: Sequence[int], proof: Proof, backend: Backend
) -> Proof:
    """The proof, if it verifies for these public inputs; otherwise the reason as an exception.

    Raises:
        MalformedFile: a point of the key or the parameters is bad, or they do not belong together.
        UnsatisfiedWitness: names the identity and the row that the table breaks.
    """
    with backend.job.phase("verify"):
        try:
            if verify(key.vk, public, proof, backend):
                return proof
        except MalformedFile:
            pass  # a bad point in the key made a bad point in the proof: find it
    with backend.job.phase("check key"):
        key.check_points(backend)
    with backend.job.phase("check table"):
        broken = broken_identity(key, witness, public, backend)
    if broken is not None:
        raise UnsatisfiedWitness(
            f"the witness does not satisfy the circuit: {broken}",
            path=witness.source,
            role="witness",
            more=f"of {key.path}; no proof was made",
        )
    raise MalformedFile(
        key.path,
        "columns",
        "the table satisfies the circuit, but the proof does not hold: columns, commitments and parameters "
        "do not belong together; no proof was made",
        role="key",
    )
