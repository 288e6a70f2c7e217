"""What the set-ups of PLONK and FFLONK share: a domain, the permutation, and powers of τ to commit with.

A key follows from its circuit and from powers of τ, and takes no contribution. Two classes have such powers:
:class:`Ceremony` from a file, :class:`LocalSecret` from a number of this machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Term, Vector
from gpuprover.commitments.powers import NO_POWERS, UNCLAIMED, Sums, check_powers, is_root_of_unity
from gpuprover.curves import Group
from gpuprover.errors import InvalidInput, MalformedFile, UnsupportedFile
from gpuprover.formats import ptau as pt
from gpuprover.formats.files import Pathish
from gpuprover.formats.ptau import PowersOfTau, read_ptau
from gpuprover.formats.r1cs import CONSTRAINTS, R1CS
from gpuprover.formats.r1cs import SECTIONS as R1CS_SECTIONS
from gpuprover.limbs import Words, generator
from gpuprover.plonkish.gates import most_gates
from gpuprover.plonkish.key import EVALUATIONS, SMALLEST_DOMAIN
from gpuprover.polynomial import Domain

K1, K2 = 2, 3
"""Factors of positions in the columns b and c, as snarkjs finds them for its curves."""
INSECURE = (
    "this key comes from a local secret: whoever made it can forge proofs for it. "
    "Use it for tests, demos and benchmarks only"
)
_BLOCK = 1 << 16
_WORK_BYTES = 40 << 20
"""Memory of a block of points with its copies, of a table of multiples, of a sum's buckets."""


def domain_for(r1cs: R1CS, gates: int, reserved: int) -> Domain:
    """The smallest domain of a key with so many gates and ``reserved`` rows.

    Raises:
        UnsupportedFile: it would be larger than keys can be over this curve.
    """
    log_n = _log_domain(gates, reserved)
    largest = r1cs.curve.scalar.two_adicity - (EVALUATIONS.bit_length() - 1)
    if log_n > largest:
        raise UnsupportedFile(
            r1cs.source,
            f"section {CONSTRAINTS} ({R1CS_SECTIONS[CONSTRAINTS]})",
            f"{gates} gates need a domain of 2^{log_n}, expected at most 2^{largest}",
            role="circuit",
        )
    return Domain(r1cs.curve.scalar, log_n)


def _log_domain(gates: int, reserved: int) -> int:
    rows = max(gates + reserved, SMALLEST_DOMAIN)
    return (rows - 1).bit_length()


def memory_needed(r1cs: R1CS, reserved: int, kept: int) -> int:
    """Bytes at the peak of a set-up, the circuit included, mapped files not; a little more than measured.

    ``kept`` is the number of polynomials that stay until the end. Polynomials are written one at a time.
    """
    scalar = r1cs.curve.scalar.bytes
    n = 1 << _log_domain(most_gates(r1cs)[0], reserved)
    # The selectors go one by one; as many columns come for the permutation.
    polynomial = (kept + 8) * n * scalar + 3 * n * (4 + 3 * 8)
    return r1cs.nbytes + gates_bytes(r1cs) + polynomial + _WORK_BYTES


def gates_bytes(r1cs: R1CS) -> int:
    """Bytes of a circuit's gates, at most."""
    scalar = r1cs.curve.scalar.bytes
    gates, additions = most_gates(r1cs)
    return gates * (3 * 4 + 5 * scalar) + additions * 2 * (4 + scalar)


# The permutation ---------------------------------------------------------------------------


def permutation(maps: Sequence[NDArray[np.uint32]], n: int, reserved: int) -> NDArray[np.uint32]:
    """Where each position leads: uint32[3, n]; column·n + row is the number of a position.

    Positions of one signal form a cycle: row by row and in each row from a to c, each leads to the one before
    it, and the first to the last. Rows that no gate has are of signal 0, but for the last ``reserved`` ones,
    whose positions lead to themselves.
    """
    used = n - reserved
    signals = np.zeros((used, 3), dtype=np.uint32)
    for i, signals_of_gates in enumerate(maps):
        signals[: len(signals_of_gates), i] = signals_of_gates
    order = np.argsort(signals.ravel(), kind="stable")
    in_order = signals.ravel()[order]
    begins = np.append(True, in_order[1:] != in_order[:-1])
    before = np.roll(order, 1)
    before[begins] = order[np.append(begins[1:], True)]
    leads_to = np.arange(3 * n)
    leads_to[order] = before
    # From 3·row + column, the order of the walk, to column·n + row.
    row, column = np.divmod(leads_to.reshape(n, 3).T, 3)
    return (column * n + row).astype(np.uint32)


def positions(backend: Backend, domain: Domain) -> Vector:
    """The values of all positions: ω^i, then k1·ω^i, then k2·ω^i."""
    n = domain.size
    columns = [backend.powers(n, domain.omega, k) for k in (1, K1, K2)]
    joined = backend.combine([Term(v, shift=i * n) for i, v in enumerate(columns)], 3 * n)
    backend.free(*columns)
    return joined


# Powers of τ -------------------------------------------------------------------------------


class Powers(Protocol):
    """The powers of τ that a key is made with.

    Attributes:
        count: the number of points τ^i·G1.
        tau_g2: τ·G2, uint64[g2_words].
        warnings: sentences that whoever uses the key has to read.
    """

    @property
    def count(self) -> int: ...
    @property
    def tau_g2(self) -> Words: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...

    def blocks(self) -> Iterator[Words]:
        """The points τ^i·G1, in order."""
        ...

    def commit(self, coefficients: Vector, first: int = 0) -> Words:
        """Σ coefficients[i]·τ^(first + i)·G1, uint64[g1_words]."""
        ...

    def lagrange(self, log_n: int) -> Words | None:
        """Said to be the Lagrange points of a domain, uint64[2^log_n, g1_words]; None if there are none."""
        ...

    def refuse_lagrange(self) -> NoReturn:
        """Raises for Lagrange points that are not those of the powers."""
        ...


class Ceremony:
    """Powers from a file: see :class:`Powers`.

    Args:
        power: that which the file has to have, at least.
        count: at most 2^(power + 1) − 1.

    Raises:
        InvalidInput: the file is too small, not prepared for phase 2, or of another curve.
        MalformedFile: its points are bad, or not the powers of one τ.
    """

    def __init__(self, r1cs: R1CS, ptau: PowersOfTau, power: int, count: int, backend: Backend) -> None:
        if ptau.curve != r1cs.curve:
            raise InvalidInput(
                f"powers of tau over {ptau.curve.name}, expected {r1cs.curve.name}",
                path=ptau.path,
                role="powers of tau",
                more=f"for {r1cs.source}",
            )
        ptau.require(power, r1cs.source)
        self.count, self._ptau, self._sums = count, ptau, Sums(backend)
        self.points = ptau.points(pt.TAU_G1)[:count]
        self.tau_g2 = np.array(ptau.points(pt.TAU_G2)[1])
        check_powers(self.points, self.tau_g2, backend, partial(_refuse_powers, ptau))
        self.warnings = ceremony_warnings(ptau, count)

    def blocks(self) -> Iterator[Words]:
        for start in range(0, self.count, _BLOCK):
            yield self.points[start : start + _BLOCK]

    def commit(self, coefficients: Vector, first: int = 0) -> Words:
        points = self.points[first : first + len(coefficients)]
        return self._sums.sum(Group.G1, points, coefficients)

    def lagrange(self, log_n: int) -> Words | None:
        return self._ptau.lagrange(pt.LAGRANGE_TAU_G1, log_n)

    def refuse_lagrange(self) -> NoReturn:
        _refuse(self._ptau, pt.LAGRANGE_TAU_G1, "not the Lagrange points of the powers in section 2")


def _refuse_powers(ptau: PowersOfTau, group: Group, problem: str) -> NoReturn:
    _refuse(ptau, pt.TAU_G1 if group is Group.G1 else pt.TAU_G2, problem)


def _refuse(ptau: PowersOfTau, section: int, problem: str) -> NoReturn:
    part = f"section {section} ({pt.SECTIONS[section]})"
    raise MalformedFile(ptau.path, part, problem, role="powers of tau")


def ceremony_warnings(ptau: PowersOfTau, count: int) -> tuple[str, ...]:
    """Sentences that whoever uses the first points of a file has to read."""
    if is_root_of_unity(ptau.points(pt.TAU_G1)[:count], ptau.curve):
        return (NO_POWERS.format(path=ptau.path),)
    return () if ptau.contributions else (UNCLAIMED.format(path=ptau.path),)


class LocalSecret:
    """Powers of a number that is drawn from the operating system, and forgotten: see :class:`Powers`."""

    warnings = (INSECURE,)

    def __init__(self, count: int, backend: Backend) -> None:
        self.count, self._backend = count, backend
        self._tau = 1 + secrets.randbelow(backend.curve.r - 1)
        self.tau_g2 = self._multiple(Group.G2, self._tau)

    def _multiple(self, group: Group, scalar: int) -> Words:
        g = generator(self._backend.curve, group)[None]
        return self._backend.points.linear_combination(group, g, [scalar])

    def blocks(self) -> Iterator[Words]:
        backend, r = self._backend, self._backend.curve.r
        g = generator(backend.curve, Group.G1)
        for start in range(0, self.count, _BLOCK):
            size = min(_BLOCK, self.count - start)
            scalars = backend.powers(size, self._tau, pow(self._tau, start, r))
            yield backend.fixed_base_mul(Group.G1, g, scalars)
            backend.free(scalars)

    def commit(self, coefficients: Vector, first: int = 0) -> Words:
        (value,) = self._backend.values_at([(coefficients, self._tau)])
        return self._multiple(Group.G1, value * pow(self._tau, first, self._backend.curve.r))

    def lagrange(self, log_n: int) -> Words | None:
        return None

    def refuse_lagrange(self) -> NoReturn:
        raise AssertionError("there are none")


def powers_for(
    r1cs: R1CS, ptau: Pathish | None, power: int, count: int, backend: Backend
) -> Ceremony | LocalSecret:
    """Powers from a prepared file, or else from a fresh secret; raises as :class:`Ceremony`, and as
    :func:`~gpuprover.formats.ptau.read_ptau`."""
    if ptau is None:
        return LocalSecret(count, backend)
    return Ceremony(r1cs, read_ptau(ptau), power, count, backend)
