"""Whether the sections of a key belong together, to a circuit, and to a ceremony's powers of tau.

That every point lies in its group says nothing of what it is a point of. Here sums under random
weights of 128 bits are compared, so that what passes is wrong with odds of 2^−120 or so:

- :func:`check_key` needs the key alone. β and δ are compared in both groups, and B1 with B2. A, B,
  H and the coefficients are tried by divisions: with u, v random, A_u = Σ u_s·A_s and
  B_v = Σ v_s·B_s, the remainder of A_u·B_v by Z has the values a_u∘b_v on the domain, as the
  coefficients tell. A wire t that is in one row i of B only has a_u∘b_t = a_u[i]·b_t: so for v on
  such wires the remainder at τ is Σ v_t·a_u[i_t]·B_t, and

      e(A_u, B_v) = e(Σ v_t·a_u[i_t]·B_t, G2)·e(Q, δ),

  with Q = [q(τ)·Z(τ)/δ] from the quotient q and H, as in a proof. Likewise with A and B exchanged.
  H is tried by such quotients, and by no others.
- :func:`check_circuit` compares the coefficients with an ``.r1cs``: products with a random vector,
  row by row.
- :func:`check_against_powers` computes the sums of every section anew from circuit and powers of tau, as
  a set-up would: nothing of the key is left open then but how δ came about.

IC and C depend on the circuit's third matrix, which a key does not hold: only the last check looks
at them.
"""

from __future__ import annotations

import secrets
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form
from gpuprover.commitments.powers import (
    NO_POWERS,
    UNCLAIMED,
    WEIGHT_BITS,
    Sums,
    are_small,
    is_root_of_unity,
    random_weights,
)
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import UNLIMITED
from gpuprover.errors import InvalidInput, MalformedFile, UnsupportedFile
from gpuprover.formats import ptau as pt
from gpuprover.formats.files import Pathish
from gpuprover.formats.points import checked_point
from gpuprover.formats.ptau import PowersOfTau, read_ptau
from gpuprover.formats.r1cs import R1CS, SparseRows, read_r1cs
from gpuprover.formats.zkey import HEADER
from gpuprover.limbs import Words
from gpuprover.memory import require
from gpuprover.polynomial import Coset, Direction, Domain
from gpuprover.systems.groth16 import key as zk
from gpuprover.systems.groth16.key import ProvingKey
from gpuprover.systems.groth16.key_warnings import NO_CONTRIBUTION, NO_FIRST_PHASE
from gpuprover.systems.groth16.prover import products
from gpuprover.systems.system import KeyCheck

_BLOCK = 1 << 16

CIRCUIT = "whether it is the circuit's key"
CONTRIBUTIONS = "names, number and proofs of contributions, which are claims of the file"


def log_domain(r1cs: R1CS) -> int:
    """log2 of the smallest domain with a row for each constraint, public signal and the constant.

    Raises:
        UnsupportedFile: the curve's scalar field has no such domain.
    """
    log_n = max(1, (r1cs.n_constraints + r1cs.n_public).bit_length())
    largest = r1cs.curve.scalar.two_adicity - 1  # the odd coset needs a root of twice the order
    if log_n > largest:
        raise UnsupportedFile(
            r1cs.source,
            "section 2 (constraints)",
            f"needs a domain of 2^{log_n}, expected at most 2^{largest}",
        )
    return log_n


def memory_needed(key: ProvingKey, backend: Backend) -> int:
    """Bytes at the peak of the checks of a key, the circuit's matrices and mapped files not."""
    vectors = 12 * key.domain_size + 8 * key.n_vars
    return backend.plan(key.demand, UNLIMITED).arena + vectors * key.curve.scalar.bytes


def check_whole_key(
    key: ProvingKey, circuit: Pathish | None, powers: Pathish | None, backend: Backend, budget: int | None
) -> KeyCheck:
    """All that can be looked at: the key by itself, beside its circuit, and with that beside powers of tau.

    Raises:
        MalformedFile: something does not belong together.
        OutOfMemory: it takes more than ``budget`` bytes.
    """
    require(memory_needed(key, backend), budget, f"checking {key.path}")
    r1cs = None
    if circuit is not None:  # first: it takes least, and a wrong circuit is the likeliest mistake
        r1cs = read_r1cs(circuit, budget, backend.job.check)
        check_circuit(key, r1cs, backend)
    found = check_key(key, backend)
    checked, unchecked, warnings = list(found.checked), list(found.unchecked), list(found.warnings)
    if r1cs is not None:
        checked.append(f"sizes and coefficients are those of {circuit}")
        unchecked.remove(CIRCUIT)
        if powers is not None:
            warnings += check_against_powers(key, r1cs, read_ptau(powers), backend)
            checked.append(f"every section is what a set-up makes of {circuit} and {powers}, for this delta")
            unchecked = [CONTRIBUTIONS]
    return KeyCheck(tuple(checked), tuple(unchecked), tuple(warnings))


# A key by itself -----------------------------------------------------------------


def check_key(key: ProvingKey, backend: Backend) -> KeyCheck:
    """Every point of a key, then whether its sections belong together. Costs some two or three proofs.

    Raises:
        MalformedFile: a point is bad, or sections contradict each other.
    """
    key.check_points(backend)
    test = Sums(backend)
    h, checked = key.header, ["every point lies in its group"]
    with backend.job.phase("check secrets"):
        for name, g1, g2 in (("beta", h.beta1, h.beta2), ("delta", h.delta1, h.delta2)):
            if not test.equal([(g1, test.g2)], [(test.g1, g2)]):
                _refuse(key, HEADER, f"{name}1 and {name}2 are of different secrets")
        checked.append("beta and delta are the same in both groups")
        if key.ceremony:
            if not np.array_equal(key.ceremony[-1].delta1[0], h.delta1):
                _refuse(key, zk.CONTRIBUTIONS, "delta after the last contribution is not the header's")
            checked.append("delta is that of the last contribution")
    with test.phase("check sections", 11):
        found = _check_sections(key, test)
    unchecked = [
        "IC and C" if found == _WHOLE else f"IC, C, {found[1]}",
        CIRCUIT,
        "the powers of tau that it was made from",
        CONTRIBUTIONS,
    ]
    return KeyCheck((*checked, found[0]), tuple(unchecked), _small_logarithms(key, backend))


_WHOLE = ("A, B1, B2, H and the coefficients belong together", "")
_B1_B2 = "B1 and B2 are the same in both groups"


def _check_sections(key: ProvingKey, test: Sums) -> tuple[str, str]:
    """(what was found right, what of these sections could not be looked at)."""
    backend, curve, n_vars = test.backend, key.curve, key.n_vars
    w = random_weights(n_vars, curve)
    a_w, b1_w, b2_w = (
        test.sum(group, points, w)
        for group, points in ((Group.G1, key.a), (Group.G1, key.b1), (Group.G2, key.b2))
    )
    if not test.equal([(b1_w, test.g2)], [(test.g1, b2_w)]):
        _refuse(key, zk.B1, "the points are not those of section 7 (B2 points)")
    records = key.coefficients
    (in_a, row_a), (in_b, row_b) = (_in_one_row(records, matrix, n_vars) for matrix in (0, 1))
    if not in_a.any() and not in_b.any():
        return _B1_B2, "A, H and the coefficients (no wire is in one row only)"
    all_a, all_b = products(key, w, backend)
    zeta = 1 + secrets.randbits(WEIGHT_BITS)
    left: list[tuple[Words, Words]] = []
    right: list[tuple[Words, Words]] = []
    domain = Domain(curve.scalar, key.log_domain)
    # Once A under all weights and B on wires of one row, once the other way round.
    for first, mine, rows, other, points in (
        (True, in_b, row_b, all_a, key.b1),
        (False, in_a, row_a, all_b, key.a),
    ):
        if not mine.any():
            continue
        masked = np.where(mine[:, None], w, np.uint64(0))
        others = backend.download(other)[rows]
        weights = backend.mul(backend.upload(masked), backend.upload(others))
        remainder = test.sum(Group.G1, points, backend.download(weights))
        masked_a, masked_b = products(key, masked, backend)
        a, b = (all_a, masked_b) if first else (masked_a, all_b)
        quotient = test.sum(Group.G1, key.h, _quotient(backend, a, b, domain))
        factor = 1 if first else zeta
        a_point = a_w if first else test.sum(Group.G1, key.a, masked)
        b_point = test.sum(Group.G2, key.b2, masked) if first else b2_w
        left.append((test.times(a_point, factor), b_point))
        right += [
            (test.times(remainder, factor), test.g2),
            (test.times(quotient, factor), key.header.delta2),
        ]
    if not test.equal(left, right):
        problem = (
            "A, B, H and the coefficients do not belong together: damaged, exchanged or of different keys"
        )
        raise MalformedFile(key.path, "sections 4 to 9", problem)
    if in_a.any() and in_b.any():
        return _WHOLE
    part, rest = ("A", "B1, B2") if in_b.any() else ("B1, B2", "A")
    return f"{part}, H, their coefficients and a part of {rest} belong together", f"the rest of {rest}"


def _in_one_row(
    records: NDArray[np.void], matrix: int, n_vars: int
) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
    """Which wires have exactly one coefficient in a matrix, bool[n_vars], and its row (0 for others)."""
    # Coefficients of 0 say nothing: with such wires alone nothing would be compared.
    mine = (records["matrix"] == matrix) & records["value"].any(axis=1)
    signals = records["signal"][mine]
    rows = np.zeros(n_vars, dtype=np.intp)
    rows[signals] = records["constraint"][mine]
    once = np.bincount(signals, minlength=n_vars) == 1
    return once, np.where(once, rows, 0)


def _quotient(backend: Backend, a: object, b: object, domain: Domain) -> Words:
    """(A·B − C) on the odd coset, where C takes the values a∘b on the domain; a and b stay as they are."""
    vectors = [backend.upload(backend.download(v)) for v in (a, b)]
    vectors.append(backend.mul(a, b))
    backend.to_coset_in_place(vectors, domain, Coset.ODD)
    quotient = backend.download(backend.multiply_subtract_in_place(*vectors))
    backend.free(*vectors)
    return quotient


def _small_logarithms(key: ProvingKey, backend: Backend) -> tuple[str, ...]:
    """Warnings of secrets that are small numbers, of either sign; β2 and δ2 are known to be the same."""
    h = key.header
    with backend.job.phase("check small secrets"):
        delta, alpha, beta = are_small([h.delta1, h.alpha1, h.beta1], backend)
    found = []
    if delta:
        found.append(NO_CONTRIBUTION)
    if alpha or beta:
        found.append(NO_FIRST_PHASE)
    return tuple(sentence for sentence in found if sentence not in key.warnings)


# A key and its circuit -------------------------------------------------------------


def check_circuit(key: ProvingKey, r1cs: R1CS, backend: Backend) -> None:
    """Whether the key's sizes and coefficients are those of a circuit.

    Raises:
        InvalidInput: circuit and key are over different curves.
        MalformedFile: they are not; names what differs, of coefficients the first row.
    """
    _same_curve(key.curve, r1cs.curve, key.path, r1cs.source)
    log_n = log_domain(r1cs)
    for what, found, expected in (
        ("variables", key.n_vars, r1cs.n_wires),
        ("public signals", key.n_public, r1cs.n_public),
        ("rows of the domain", key.domain_size, 1 << log_n),
    ):
        if found != expected:
            _refuse(key, HEADER, f"{found} {what}, expected {expected} for {r1cs.source}")
    w = random_weights(key.n_vars, key.curve)
    with backend.job.phase("check coefficients"):
        ours = [backend.download(v) for v in products(key, w, backend)]
        theirs = _products(r1cs, w, key.domain_size, backend)[:2]
        for name, mine, other in zip("AB", ours, theirs, strict=True):
            wrong = (mine != other).any(axis=1)
            if wrong.any():
                row = int(np.argmax(wrong))
                _refuse(key, zk.COEFFICIENTS, f"row {row} of {name} is not that of {r1cs.source}")


def _products(r1cs: R1CS, w: Words, size: int, backend: Backend) -> list[Words]:
    """A·w, B·w and C·w, canonical uint64[size, limbs], the rows of the public signals in A included."""
    found = []
    for matrix in r1cs.matrices:
        product = np.zeros((size, w.shape[1]), dtype=np.uint64)
        if matrix.nnz:
            product[: matrix.rows] = _product(matrix, w, backend)
        found.append(product)
    count, rows = r1cs.n_public + 1, r1cs.n_constraints
    found[0][rows : rows + count] = w[:count]
    return found


def _product(matrix: SparseRows, w: Words, backend: Backend) -> Words:
    single = np.broadcast_to(np.zeros(1, dtype=np.uint32), matrix.nnz)
    prepared = backend.prepare_matrices(
        1, matrix.rows, single, matrix.row_index(), matrix.wires, matrix.values, Form.CANONICAL
    )
    (product,) = backend.spmv(prepared, w)
    # Canonical coefficients times canonical values: the vector stands as what it means.
    result = backend.download(product)
    backend.free(prepared, product)
    return result


# A key, its circuit and its ceremony ---------------------------------------------------


def check_against_powers(key: ProvingKey, r1cs: R1CS, ptau: PowersOfTau, backend: Backend) -> tuple[str, ...]:
    """Whether every section of a key is what a set-up makes of a circuit and powers of tau, for some δ.

    The powers of tau are checked too; :func:`check_key` and :func:`check_circuit` come first.

    Returns:
        as :func:`check_powers`.

    Raises:
        InvalidInput: the powers of tau do not serve the circuit.
        MalformedFile: a section is another one.
    """
    _same_curve(key.curve, ptau.curve, key.path, ptau.path)
    log_n = log_domain(r1cs)
    ptau.require(log_n, r1cs.source)
    check_points(ptau, log_n, backend)
    warnings = check_powers(ptau, log_n, backend)
    curve, h, test = key.curve, key.header, Sums(backend)
    alpha1, beta1, beta2 = ceremony_points(ptau)
    for name, mine, theirs in (
        ("alpha1", h.alpha1, alpha1),
        ("beta1", h.beta1, beta1),
        ("beta2", h.beta2, beta2),
        ("gamma2", h.gamma2, test.g2),
    ):
        if not np.array_equal(mine, theirs):
            expected = "the generator" if name == "gamma2" else f"that of {ptau.path}"
            _refuse(key, HEADER, f"{name} is not {expected}")
    in_g1, in_g2, alpha, beta = ptau.lagrange_bases(log_n)
    w, split = random_weights(key.n_vars, curve), key.n_public + 1
    public, private = w.copy(), w.copy()
    public[split:] = private[:split] = 0

    def points_of(a: Words, b: Words, c: Words) -> Words:
        parts = [test.sum(Group.G1, p, s) for p, s in ((beta, a), (alpha, b), (in_g1, c))]
        return backend.points.linear_combination(Group.G1, np.stack(parts), [1, 1, 1])

    source = f"not those of {r1cs.source} and {ptau.path}"
    with test.phase("check against powers of tau", 16):
        a, b, _ = _products(r1cs, w, key.domain_size, backend)
        for section, group, points, lagrange, values in (
            (zk.A, Group.G1, key.a, in_g1, a),
            (zk.B1, Group.G1, key.b1, in_g1, b),
            (zk.B2, Group.G2, key.b2, in_g2, b),
        ):
            if not np.array_equal(test.sum(group, points, w), test.sum(group, lagrange, values)):
                _refuse(key, section, f"the points are {source}")
        expected_ic = points_of(*_products(r1cs, public, key.domain_size, backend))
        if not np.array_equal(test.sum(Group.G1, key.ic, w[:split]), expected_ic):
            _refuse(key, zk.IC, f"the points are {source}")
        # The rows of the public signals are the public wires' alone.
        at_one = points_of(*_products(r1cs, private, key.domain_size, backend))
        if not test.equal([(test.sum(Group.G1, key.c, w[split:]), h.delta2)], [(at_one, test.g2)]):
            _refuse(key, zk.C, f"the points are {source}")
        rho = random_weights(key.domain_size, curve)
        coset = ptau.lagrange(pt.LAGRANGE_TAU_G1, log_n + 1)[1::2]
        sides = [test.sum(Group.G1, points, rho) for points in (key.h, coset)]
        if not test.equal([(sides[0], h.delta2)], [(sides[1], test.g2)]):
            _refuse(key, zk.H, f"the points are {source}")
    return warnings


# Powers of tau ---------------------------------------------------------------------------


def ceremony_points(ptau: PowersOfTau) -> tuple[Words, Words, Words]:
    """α and β in G1, β in G2, uint64[words].

    Raises:
        MalformedFile: one of them is off its curve or infinite.
    """
    found = []
    for section, group in (
        (pt.ALPHA_TAU_G1, Group.G1),
        (pt.BETA_TAU_G1, Group.G1),
        (pt.BETA_G2, Group.G2),
    ):
        try:
            first = ptau.points(section)[:1]
            found.append(checked_point(ptau.curve, group, first, infinity="which no ceremony gives"))
        except ValueError as error:
            raise MalformedFile(ptau.path, _part(section), f"point 0: {error}") from None
    alpha1, beta1, beta2 = found
    return alpha1, beta1, beta2


def check_points(ptau: PowersOfTau, log_n: int, backend: Backend) -> None:
    """Raises MalformedFile for a bad point among those that a circuit of this domain uses."""
    n = 1 << log_n
    lagrange, coset = range(n - 1, 2 * n - 1), range(2 * n, 4 * n - 1, 2)
    used = (
        (pt.ALPHA_TAU_G1, range(1)),
        (pt.BETA_TAU_G1, range(1)),
        (pt.BETA_G2, range(1)),
        (pt.TAU_G2, range(2)),
        (pt.TAU_G1, range(_powers_used(ptau, n))),
        (pt.LAGRANGE_TAU_G1, lagrange),
        (pt.LAGRANGE_TAU_G1, coset),
        (pt.LAGRANGE_TAU_G2, lagrange),
        (pt.LAGRANGE_ALPHA_TAU_G1, lagrange),
        (pt.LAGRANGE_BETA_TAU_G1, lagrange),
    )
    with backend.job.phase("powers of tau"):
        for done, (section, indices) in enumerate(used):
            group = Group.G2 if section in pt.IN_G2 else Group.G1
            points = ptau.points(section)
            for at in range(0, len(indices), _BLOCK):
                some = indices[at : at + _BLOCK]
                bad = backend.points.first_bad_point(group, points[some.start : some.stop : some.step])
                if bad >= 0:
                    problem = f"point {some[bad]} is off the curve, outside the subgroup or out of range"
                    raise MalformedFile(ptau.path, _part(section), problem)
                backend.job.check()
            backend.job.report((done + 1) / len(used))


def check_powers(ptau: PowersOfTau, log_n: int, backend: Backend) -> tuple[str, ...]:
    """Whether the points that a circuit of 2^log_n rows uses are of one τ, one α and one β.

    :func:`check_points` comes first.

    Returns:
        sentences that whoever uses the file has to read: secrets that are known, no contributions.

    Raises:
        MalformedFile: they are not; names the section.
    """
    curve, n, test = ptau.curve, 1 << log_n, Sums(backend)
    alpha1, beta1, beta2 = ceremony_points(ptau)
    g1, g2 = test.g1, test.g2

    def must(holds: bool, section: int, problem: str) -> None:
        if not holds:
            raise MalformedFile(ptau.path, _part(section), problem)

    powers = ptau.points(pt.TAU_G1)[: _powers_used(ptau, n)]
    must(np.array_equal(powers[0], g1), pt.TAU_G1, "point 0 is not the generator")
    two = ptau.points(pt.TAU_G2)[:2]
    must(np.array_equal(two[0], g2), pt.TAU_G2, "point 0 is not the generator")
    must(bool(powers.any(axis=1).all()), pt.TAU_G1, "a point at infinity, which no ceremony gives")
    must(bool(two.any(axis=1).all()), pt.TAU_G2, "a point at infinity, which no ceremony gives")
    with test.phase("check powers of tau", 9):
        tau2 = two[1]
        w = random_weights(len(powers) - 1, curve)
        lower, upper = (test.sum(Group.G1, points, w) for points in (powers[:-1], powers[1:]))
        must(test.equal([(upper, g2)], [(lower, tau2)]), pt.TAU_G1, "not the powers of the tau of section 3")
        must(test.equal([(beta1, g2)], [(g1, beta2)]), pt.BETA_G2, "another beta than that of section 5")

        w = random_weights(n, curve)
        lagrange = test.sum(Group.G1, ptau.lagrange(pt.LAGRANGE_TAU_G1, log_n), w)
        expected = test.sum(Group.G1, powers[:n], _coefficients(w, log_n, backend))
        must(
            np.array_equal(lagrange, expected),
            pt.LAGRANGE_TAU_G1,
            "not the Lagrange points of the powers in section 2",
        )
        in_g2 = test.sum(Group.G2, ptau.lagrange(pt.LAGRANGE_TAU_G2, log_n), w)
        must(test.equal([(lagrange, g2)], [(g1, in_g2)]), pt.LAGRANGE_TAU_G2, "not the points of section 12")
        for section, left, right in (
            (pt.LAGRANGE_ALPHA_TAU_G1, alpha1, in_g2),
            (pt.LAGRANGE_BETA_TAU_G1, lagrange, beta2),
        ):
            found = test.sum(Group.G1, ptau.lagrange(section, log_n), w)
            must(
                test.equal([(found, g2)], [(left, right)]),
                section,
                "not the points of section 12 times the secret",
            )
        # On the odd half of the next domain; of the largest one files leave out the highest power.
        wide = np.zeros((2 * n, w.shape[1]), dtype=np.uint64)
        wide[1::2] = w
        coset = test.sum(Group.G1, ptau.lagrange(pt.LAGRANGE_TAU_G1, log_n + 1)[1::2], w)
        coefficients = _coefficients(wide, log_n + 1, backend)
        expected = test.sum(Group.G1, powers, coefficients[: len(powers)])
        must(
            np.array_equal(coset, expected),
            pt.LAGRANGE_TAU_G1,
            "not the Lagrange points of the powers in section 2",
        )

    known = []
    if _known(powers, np.stack([alpha1, beta1]), curve):
        known.append(NO_POWERS.format(path=ptau.path))
    elif not ptau.contributions:
        known.append(UNCLAIMED.format(path=ptau.path))
    return tuple(known)


def _powers_used(ptau: PowersOfTau, n: int) -> int:
    """The number of powers of τ in G1: 2n, less the last in a file of exactly the circuit's power."""
    return min(2 * n, len(ptau.points(pt.TAU_G1)))


def _known(powers: Words, points: Words, curve: CurveParams) -> bool:
    """Whether τ is ±1 or a root of unity of order 2^k, or α or β is ±τ^i: so ±1 itself, too."""
    if is_root_of_unity(powers, curve):
        return True
    limbs = curve.base.limbs
    x = powers[:, :limbs]
    wanted = points[:, :limbs]
    if (wanted[0] == wanted[1]).all():
        return True
    return any(bool((x == row).all(axis=1).any()) for row in wanted)


def _coefficients(values: Words, log_n: int, backend: Backend) -> Words:
    """For weights ρ_i, those numbers c_k with Σ ρ_i·L_i(τ) = Σ c_k·τ^k, canonical.

    L_i = 1/n·Σ_k ω^(−ik)·X^k, so c is the inverse transform of ρ.
    """
    v = backend.upload(values)
    v = backend.ntt(v, Domain(backend.curve.scalar, log_n), Direction.INVERSE)
    result = backend.download(v)
    backend.free(v)
    return result


# Helpers -----------------------------------------------------------------------------------


def _same_curve(mine: CurveParams, other: CurveParams, path: str, source: str) -> None:
    if mine != other:
        raise InvalidInput(f"over {other.name}, expected {mine.name}", path=source, more=f"for {path}")


def _part(section: int) -> str:
    return f"section {section} ({pt.SECTIONS[section]})"


def _refuse(key: ProvingKey, section: int, problem: str) -> NoReturn:
    raise MalformedFile(key.path, f"section {section} ({zk.SECTIONS[section]})", problem)
