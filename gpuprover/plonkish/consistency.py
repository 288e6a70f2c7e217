"""Whether the parts of a key of PLONK or FFLONK belong together, to a circuit, and to powers of τ.

Nothing of such a key is secret or random but τ, so that all of it can be computed anew:

- the powers of τ by a sum under random weights, in one product of pairings;
- a polynomial's values on the subgroup of order 4n, and the Lagrange polynomials, by transforms;
- S1, S2, S3 from the wires;
- the header's commitments from coefficients and powers of τ.

What is left open are the gates, which a circuit gives, and where the powers of τ are from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form, Term, Vector
from gpuprover.commitments.powers import are_small, check_powers, is_root_of_unity
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import InvalidInput, MalformedFile
from gpuprover.formats import ptau as pt
from gpuprover.formats.binfile import BinFile
from gpuprover.formats.files import Pathish
from gpuprover.formats.ptau import PowersOfTau, read_ptau
from gpuprover.formats.r1cs import R1CS, read_r1cs
from gpuprover.formats.zkey import HEADER
from gpuprover.limbs import Words, field_to_words
from gpuprover.memory import require
from gpuprover.plonkish.gates import SELECTORS, Gates, gates_of
from gpuprover.plonkish.key import (
    ADDITIONS,
    COLUMNS,
    EVALUATIONS,
    WIRE_A,
    WIRE_B,
    WIRE_C,
    Sizes,
    Wiring,
    domain_of,
    polynomial_bytes,
)
from gpuprover.plonkish.key_writer import evaluations, lagrange_polynomials, sigma_columns
from gpuprover.plonkish.permutation import SIGMA
from gpuprover.plonkish.setup import ceremony_warnings, domain_for, gates_bytes
from gpuprover.polynomial import Coset, Domain

CIRCUIT = "whether it is the circuit's key"
POWERS = "the powers of tau that it was made from"
KNOWN_TAU = (
    "tau of this key is a small number or a root of unity, which everybody can find: anyone can forge proofs "
    "for it. Make the key anew from another .ptau file"
)


_WORK_BYTES = 40 << 20
"""Memory of a sum's buckets, and of blocks with their copies."""


@dataclass(frozen=True)
class KeyParts:
    """A key as the checks see it.

    Attributes:
        path: where it came from, for messages.
        file: its container.
        curve: the curve.
        wiring: the gates' wires.
        coefficients: of polynomials, by name.
        sections: names of the polynomials in each section, in order.
        lagrange, powers: the sections of Lagrange polynomials and of powers of τ.
        points: τ^i·G1.
        tau_g2: τ·G2.
        reserved: rows at the end of the domain that belong to no gate.
        keep_zeros: see :func:`.gates_of`.
        warnings: what is said of the key already.
    """

    path: str
    file: BinFile
    curve: CurveParams
    wiring: Wiring
    coefficients: Mapping[str, Words]
    sections: Mapping[int, tuple[str, ...]]
    lagrange: int
    powers: int
    points: Words
    tau_g2: Words
    reserved: int
    keep_zeros: bool
    warnings: tuple[str, ...]

    @property
    def sizes(self) -> Sizes:
        return self.wiring.sizes

    @property
    def domain(self) -> Domain:
        return domain_of(self.curve, self.sizes)

    def section_of(self, name: str) -> int:
        """The section that a polynomial stands in."""
        return next(section for section, names in self.sections.items() if name in names)

    def values(self, section: int, index: int) -> Words:
        """Values on the subgroup of order 4n of a section's polynomial: uint64[4n, limbs], as they stand."""
        size = polynomial_bytes(self.curve, self.sizes.domain_size)
        whole = self.file.view(section)[index * size : (index + 1) * size].view("<u8")
        rows: Words = whole.reshape(-1, self.curve.scalar.limbs)[self.sizes.domain_size :]
        return rows

    def refuse(self, section: int, problem: str) -> NoReturn:
        raise MalformedFile(self.path, self.file.name(section), problem, role="key")


def memory_needed(sizes: Sizes, curve: CurveParams) -> int:
    """Bytes at the peak of the checks of a key, mapped files not; a little more than measured."""
    # A polynomial's values, coefficients and a sum of polynomials; the permutation as numbers.
    return sizes.domain_size * (12 * curve.scalar.bytes + 3 * (4 + 3 * 8)) + _WORK_BYTES


def check_key(
    key: KeyParts,
    circuit: Pathish | None,
    powers: Pathish | None,
    backend: Backend,
    budget: int | None,
    fold: Mapping[str, int],
    check_commitments: Callable[[Vector | None], None],
) -> tuple[list[str], list[str], list[str]]:
    """All that can be looked at: the key by itself, beside its circuit, beside powers of tau.

    Args:
        fold: see :func:`check_polynomials`.
        check_commitments: raises MalformedFile if the header's are wrong; is called with the folded
            polynomials, which are not its to free.

    Returns:
        what was checked, what could not be, and warnings.

    Raises:
        MalformedFile: something does not belong together.
        OutOfMemory: it takes more than ``budget`` bytes.
    """
    need = memory_needed(key.sizes, key.curve)
    require(need, budget, f"checking {key.path}")
    checked, unchecked, gates = [], [], None
    if circuit is not None:  # first: a wrong circuit is the likeliest mistake
        r1cs = read_r1cs(circuit, budget, backend.job.check)
        require(need + gates_bytes(r1cs), budget, f"checking {key.path} beside {circuit}")
        gates = check_circuit(key, r1cs, backend)
    check_tau(key, backend)
    checked.append("every point lies in its group, and the powers of tau are of one tau")
    folded = check_polynomials(key, gates, fold, backend)
    check_lagrange(key, backend)
    checked.append("values on the larger subgroup are those of the coefficients")
    checked.append("the permutation is that of the wires")
    with backend.job.phase("check commitments"):
        check_commitments(folded)
    checked.append("the commitments are those of the coefficients")
    if circuit is None:
        unchecked.append(CIRCUIT)
    else:
        checked.append(f"gates, wires and additions are those of {circuit}")
    warnings = [*_known_tau(key, backend)]
    if powers is None:
        unchecked.append(POWERS)
    else:
        warnings += check_against_powers(key, read_ptau(powers))
        checked.append(f"the powers of tau are those of {powers}")
    if folded is not None:
        backend.free(folded)
    return checked, unchecked, warnings


# A key by itself -----------------------------------------------------------------------------


def check_tau(key: KeyParts, backend: Backend) -> None:
    """Whether all points are the powers of one τ; raises MalformedFile, for bad points too."""

    def refuse(group: Group, problem: str) -> NoReturn:
        key.refuse(HEADER if group is Group.G2 else key.powers, problem)

    check_powers(key.points, key.tau_g2, backend, refuse)


def _known_tau(key: KeyParts, backend: Backend) -> tuple[str, ...]:
    """Warnings of a τ that is known."""
    with backend.job.phase("check small secrets"):
        known = is_root_of_unity(key.points, key.curve) or are_small([key.points[1]], backend)[0]
    return (KNOWN_TAU,) if known and not key.warnings else ()


def check_polynomials(
    key: KeyParts, gates: Gates | None, fold: Mapping[str, int], backend: Backend
) -> Vector | None:
    """Whether selectors, S1, S2 and S3 have the values that they should have.

    Those on the subgroup of order 4n follow from the coefficients; those of S1, S2, S3 from the wires; those
    of the selectors from the circuit's gates. Where these are not known, gates of public signals and of
    additions are known all the same, and rows behind the last gate.

    Args:
        gates: the circuit's; None if it is not known.
        fold: a factor for each name of a polynomial, or for none.

    Returns:
        Σ fold[name]·polynomial.

    Raises:
        MalformedFile: names the section.
    """
    domain, folded, sums = key.domain, None, _gates_of_additions(key)
    names = [(section, i, name) for section, some in key.sections.items() for i, name in enumerate(some)]
    sigma: dict[str, Words] = {}
    with backend.job.phase("check polynomials"):
        for done, (section, i, name) in enumerate(names):
            v = backend.upload(key.coefficients[name], Form.MONTGOMERY)
            (on_domain,) = backend.extend(v, domain, [Coset.NONE])
            values = backend.download(on_domain, Form.MONTGOMERY)
            backend.free(on_domain)
            stored, at = key.values(section, i), 0
            for block in evaluations(backend, domain, v, values):
                row = first_difference(stored[at : at + len(block)], block)
                if row >= 0:
                    key.refuse(section, f"value {at + row} of {name} is not that of the coefficients")
                at += len(block)
            if name.lower() in SELECTORS:
                _check_selector(key, section, name, values, gates, sums, backend)
            else:
                if not sigma:
                    columns = sigma_columns(backend, domain, key.wiring.maps, key.reserved)
                    sigma = dict(zip(SIGMA, columns, strict=True))
                row = first_difference(values, sigma.pop(name))
                if row >= 0:
                    key.refuse(section, f"{name} at row {row} is not that of the wires in sections 4 to 6")
            if name in fold:
                terms = [Term(v, fold[name])] if folded is None else [Term(folded), Term(v, fold[name])]
                total = backend.combine(terms)
                if folded is not None:
                    backend.free(folded)
                folded = total
            backend.free(v)
            backend.job.check()
            backend.job.report((done + 1) / len(names))
    return folded


def _gates_of_additions(key: KeyParts) -> NDArray[np.int64]:
    """For each addition its gate (left, right, sum): the first one whose c is the sum.

    Raises:
        MalformedFile: an addition has none.
    """
    sizes, (a, b, c) = key.sizes, key.wiring.maps
    (rows,) = np.nonzero(c >= sizes.n_vars)
    made, first = np.unique(c[rows], return_index=True)
    found = np.full(sizes.additions, -1, dtype=np.int64)
    found[made - sizes.n_vars] = rows[first]
    records = key.wiring.additions
    wrong = np.flatnonzero(found < 0)
    if not len(wrong):
        wrong = np.flatnonzero((a[found] != records["left"]) | (b[found] != records["right"]))
    if len(wrong):
        key.refuse(ADDITIONS, f"record {wrong[0]} has no gate of its two signals and their sum")
    return found


def _check_selector(
    key: KeyParts,
    section: int,
    name: str,
    values: Words,
    gates: Gates | None,
    sums: NDArray[np.int64],
    backend: Backend,
) -> None:
    """Public signals and additions have gates of their own, and rows behind the last gate have none.

    Args:
        sums: the additions' gates.
    """
    sizes, which = key.sizes, name.lower()
    if gates is not None:
        row = first_difference(values[: sizes.gates], gates.selectors[which])
        if row >= 0:
            key.refuse(section, f"{name} of gate {row} is not that of the circuit")
    zero, one = field_to_words(key.curve.scalar, [0, 1])
    row = first_difference(values[: sizes.n_public], one if which == "ql" else zero)
    if row >= 0:
        key.refuse(section, f"{name} of gate {row} is not that of a public signal")
    if sizes.additions:
        # sum − left_factor·left − right_factor·right = 0.
        found, expected = values[sums], one if which == "qo" else zero
        if which in ("ql", "qr"):
            factors = key.wiring.additions["left_factor" if which == "ql" else "right_factor"]
            x, y = (backend.upload(words, Form.MONTGOMERY) for words in (found, factors))
            total = backend.add(x, y)
            found = backend.download(total)
            backend.free(x, y, total)
        row = first_difference(found, expected)
        if row >= 0:
            key.refuse(section, f"{name} of gate {sums[row]} is not that of addition {row} in section 3")
    behind = np.flatnonzero(values[sizes.gates :].any(axis=1))
    if len(behind):
        row = sizes.gates + int(behind[0])
        key.refuse(section, f"{name} at row {row} is not 0, expected {sizes.gates} gates")


def check_lagrange(key: KeyParts, backend: Backend) -> None:
    """Whether the section of Lagrange polynomials holds them; raises MalformedFile."""
    count = max(1, key.sizes.n_public)
    content = key.file.view(key.lagrange).view("<u8").reshape(-1, key.curve.scalar.limbs)
    at = 0
    with backend.job.phase("check Lagrange polynomials"):
        for i, pieces in enumerate(lagrange_polynomials(backend, key.domain, count)):
            for piece in pieces:
                row = first_difference(content[at : at + len(piece)], piece)
                if row >= 0:
                    what = f"scalar {at + row - i * (1 + EVALUATIONS) * key.sizes.domain_size}"
                    key.refuse(
                        key.lagrange, f"{what} of polynomial {i} is not that of the Lagrange polynomial"
                    )
                at += len(piece)
            backend.job.check()
            backend.job.report((i + 1) / count)


def first_difference(found: NDArray[Any], expected: NDArray[Any]) -> int:
    """The first row in which two arrays differ, or −1."""
    different = found != expected
    rows = np.flatnonzero(different.any(axis=1) if different.ndim > 1 else different)
    return int(rows[0]) if len(rows) else -1


# A key and its circuit -------------------------------------------------------------------------


def check_circuit(key: KeyParts, r1cs: R1CS, backend: Backend) -> Gates:
    """Whether sizes, additions and wires are those of a circuit -> the circuit's gates.

    Raises:
        InvalidInput: circuit and key are over different curves.
        UnsupportedFile: the circuit is too large for a key.
        MalformedFile: they are not; names what differs.
    """
    _same_curve(key, r1cs.curve, r1cs.source)
    with backend.job.phase("gates"):
        gates = gates_of(r1cs, key.keep_zeros, backend)
    domain, sizes = domain_for(r1cs, gates.count, key.reserved), key.sizes
    for what, count, wanted in (
        ("variables", sizes.n_vars, gates.wires),
        ("public signals", sizes.n_public, gates.n_public),
        ("additions", sizes.additions, gates.additions),
        ("gates", sizes.gates, gates.count),
        ("rows of the domain", sizes.domain_size, domain.size),
    ):
        if count != wanted:
            key.refuse(HEADER, f"{count} {what}, expected {wanted} for {r1cs.source}")
    records = key.wiring.additions
    for field, expected in (
        ("left", gates.left),
        ("right", gates.right),
        ("left_factor", gates.left_factors),
        ("right_factor", gates.right_factors),
    ):
        row = first_difference(records[field], expected)
        if row >= 0:
            key.refuse(ADDITIONS, f"record {row} is not that of {r1cs.source}")
    for name, section, signals, wires in zip(
        COLUMNS, (WIRE_A, WIRE_B, WIRE_C), key.wiring.maps, (gates.a, gates.b, gates.c), strict=True
    ):
        row = first_difference(signals, wires)
        if row >= 0:
            key.refuse(section, f"wire {name} of gate {row} is not that of {r1cs.source}")
    return gates


def _same_curve(key: KeyParts, curve: CurveParams, source: str) -> None:
    if key.curve != curve:
        problem = f"over {curve.name}, expected {key.curve.name}"
        raise InvalidInput(problem, path=source, more=f"for {key.path}")


# A key and its ceremony ------------------------------------------------------------------------


def check_against_powers(key: KeyParts, ptau: PowersOfTau) -> tuple[str, ...]:
    """Whether the key's powers of τ are those of a file; :func:`check_tau` comes first.

    Returns:
        sentences that whoever uses the file has to read.

    Raises:
        InvalidInput: the file is over another curve.
        MalformedFile: they are not.
    """
    _same_curve(key, ptau.curve, ptau.path)
    theirs = ptau.points(pt.TAU_G1)
    if len(theirs) < len(key.points):
        raise InvalidInput(
            f"{len(theirs)} powers of tau, expected at least {len(key.points)}",
            path=ptau.path,
            role="powers of tau",
            more=f"for {key.path}",
        )
    if not np.array_equal(key.tau_g2, ptau.points(pt.TAU_G2)[1]):
        key.refuse(HEADER, f"X_2 is not the tau of {ptau.path}")
    row = first_difference(key.points, theirs[: len(key.points)])
    if row >= 0:
        key.refuse(key.powers, f"point {row} is not that of {ptau.path}")
    return ceremony_warnings(ptau, len(key.points))
