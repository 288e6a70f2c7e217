"""The FFLONK prover, in the rounds of eprint 2021/1167, as snarkjs's keys want it.

Columns a, b, c of n rows; the last two rows are no gates, and random. C0 = Σ X^i·p_i(X⁸) is the key's.

1. T0 = gates/(X^n − 1), C1 = a(X⁴) + X·b(X⁴) + X²·c(X⁴) + X³·T0(X⁴), [C1]; β and γ are drawn.
2. The grand product z, T1 = (z − 1)·L_1/(X^n − 1) and T2 = permutation/(X^n − 1),
   C2 = z(X³) + X·T1(X³) + X²·T2(X³), [C2]; ξ is drawn.
3. Fifteen evaluations at ξ and ξω; α is drawn.
4. f = (C0 − R0)/M0 + α·(C1 − R1)/M1 + α²·(C2 − R2)/M2, [f]; y is drawn. R_j is what is left of C_j mod M_j
   (:mod:`gpuprover.systems.fflonk.rounds`).
5. L = C0 + q1·C1 + q2·C2 − M0(y)·f, and [(L − L(y))/(X − y)].

From round 4 on C1 and C2 are there as quotients by M1 and M2, with what is left, and are multiplied out for
L: so no more than four polynomials of 8n or 9n coefficients are there at a time.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gpuprover.backend import Backend, Form, Term, Vector
from gpuprover.columns import Expression, challenge, column
from gpuprover.commitments import kzg
from gpuprover.curves import Group
from gpuprover.demand import UNLIMITED, Budget, Demand, KeyBases, KeyColumn
from gpuprover.formats.wtns import Witness
from gpuprover.limbs import Words, generator
from gpuprover.plonkish import checks, permutation, wires
from gpuprover.plonkish.checks import check_header as check_header
from gpuprover.plonkish.checks import check_key_once as check_key_once
from gpuprover.plonkish.checks import in_subgroups as in_subgroups
from gpuprover.plonkish.key import Sizes, Wiring, domain_of
from gpuprover.plonkish.quotient import Numerator
from gpuprover.polynomial import Domain
from gpuprover.systems.fflonk.documents import (
    CURVE,
    NAME,
    RESERVED,
    Constants,
    Evaluations,
    Proof,
    VerificationKey,
)
from gpuprover.systems.fflonk.key import MORE_POWERS, MULTIPLE, POLYNOMIALS, ProvingKey
from gpuprover.systems.fflonk.rounds import Divisors, Transcript, point_of
from gpuprover.systems.fflonk.verifier import verify

BLINDING = 9
"""Random scalars of a proof: b1 to b6 are rows of a, b and c, b7 to b9 blind z."""
NAMES = tuple(name for names in POLYNOMIALS.values() for name in names)
IN_C0 = ("Ql", "Qr", "Qo", "Qm", "Qc", "S1", "S2", "S3")
"""The key's polynomials, in the order in which C0 has them."""
_SRS = "powers of tau"


def _gates() -> Sequence[tuple[str, Expression]]:
    """The numerator of T0; the column Qc has the public signals taken away.

    Each step brings in one or two polynomials, so that few are evaluated at a time.
    """
    a, b, c = (column(name) for name in "abc")
    return [
        ("sum 1", a * b * column("Qm") + column("Qc")),
        ("sum 2", column("sum 1") + a * column("Ql")),
        ("sum 3", column("sum 2") + b * column("Qr")),
        ("T0", column("sum 3") + c * column("Qo")),
    ]


def _permutation() -> Sequence[tuple[str, Expression]]:
    """The numerator of T2."""
    a, b, c, z, x = (column(name) for name in "abczx")
    beta, gamma = challenge("beta"), challenge("gamma")
    moved = (
        (a + beta * x + gamma)
        * (b + beta * challenge("k1") * x + gamma)
        * (c + beta * challenge("k2") * x + gamma)
    )
    return [
        ("moved", moved),
        ("before", column("moved") * z),
        ("after 1", (a + beta * column("S1") + gamma) * column("z", 1)),
        ("after 2", column("after 1") * (b + beta * column("S2") + gamma)),
        ("T2", column("before") - column("after 2") * (c + beta * column("S3") + gamma)),
    ]


_T0, _T2 = Numerator(_gates()), Numerator(_permutation())


def random_blinding() -> tuple[int, ...]:
    """b1 to b9, uniform in [0, r) from the operating system."""
    return tuple(secrets.randbelow(CURVE.r) for _ in range(BLINDING))


def check_blinding(blinding: object) -> tuple[int, ...]:
    """Fixed (b1, …, b9) as a caller gives it. Raises InvalidInput."""
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
        n = self.sizes.domain_size
        g1, g2 = (generator(CURVE, group) for group in (Group.G1, Group.G2))
        vk = VerificationKey(self.sizes.n_public, n.bit_length() - 1, Constants(2, 3, 1, 1, 1, 1), g2, g1)
        parts = Parts(
            wires.hollow_wiring(CURVE, self.sizes),
            {name: wires.hollow(n, CURVE.scalar.limbs) for name in NAMES},
            wires.hollow(MULTIPLE * n + MORE_POWERS, CURVE.g1_words),
            vk,
        )
        w = np.empty((demand.witness, CURVE.scalar.limbs), dtype=np.uint64)
        rounds(parts, w, [0] * self.sizes.n_public, (1,) * BLINDING, backend)


def demand(sizes: Sizes) -> Demand:
    """The demand of a proof with a key of these sizes.

    None is leaner: most memory is taken in round 4, and quotients on cosets take less than that.
    """
    n = sizes.domain_size
    return Demand(
        protocol=NAME,
        curve=CURVE,
        witness=sizes.n_vars,
        domains=(domain_of(CURVE, sizes),),
        bases=(KeyBases(_SRS, Group.G1, MULTIPLE * n),),
        matrices=(),
        columns=tuple(KeyColumn(name, n) for name in NAMES),
        together=((_SRS,),),
        rehearse=_Rehearsal(sizes),
    )


def demand_of(key: ProvingKey) -> Demand:
    """The demand of a proof with a key."""
    return demand(key.sizes)


# The rounds ------------------------------------------------------------------------------------


def rounds(
    key: ProvingKey | Parts, w: Words, public: Sequence[int], blinding: Sequence[int], backend: Backend
) -> Proof:
    """All that a device does for a proof.

    Args:
        w: the witness, canonical uint64[n_vars, limbs].
        blinding: b1 to b9.

    Raises:
        IndexError: an index of the wiring is out of range.
        UselessChallenge: ξ is 0 or a root of unity, or y one of the points that are opened.
    """
    job, r, vk = backend.job, CURVE.r, key.vk
    domain, n = vk.domain, vk.domain.size
    constants = vk.constants
    b1, b2, b3, b4, b5, b6, b7, b8, b9 = blinding
    transcript = Transcript()

    with job.phase("wires"):
        srs = backend.bases(_SRS, key.powers[: MULTIPLE * n])
        fixed = {
            name: backend.column(name, words, Form.MONTGOMERY) for name, words in key.polynomials.items()
        }
        columns, made = {}, {}
        gates = zip("abc", wires.columns(key.wiring, w, backend), ((b1, b2), (b3, b4), (b5, b6)), strict=True)
        for name, values, last in gates:
            columns[name] = _ending(backend, values, last)
            made[name] = permutation.interpolated(backend, domain, backend.combine([Term(columns[name])]))

    with job.phase("round 1"):
        t0 = _gates_quotient(backend, domain, fixed, made, public)
        c1 = backend.interleave([made["a"], made["b"], made["c"], t0])
        backend.free(t0)
        (c1_point,) = kzg.commit(backend, srs, [c1])
    beta, gamma = transcript.beta_gamma(vk, public, c1_point)
    challenges = {"beta": beta, "gamma": gamma, "k1": constants.k1, "k2": constants.k2}

    with job.phase("round 2"):
        products = permutation.grand_product(backend, domain, columns, fixed, challenges)
        backend.free(*columns.values())
        made["z"] = permutation.blinded(backend, domain, products, (b9, b8, b7))
        backend.free(products)
        # L_1/(X^n − 1) is 1/(n·(X − 1)), and z is 1 at 1.
        quotient, rest = backend.divide(made["z"], 1)
        made["T1"] = backend.scale_powers_in_place(quotient, pow(n, -1, r), 1)
        backend.free(rest)
        parts = _T2.quotient(backend, domain, {**fixed, **made}, challenges, 3)
        made["T2"] = _joined(backend, parts, n)
        c2 = backend.interleave([made["z"], made["T1"], made["T2"]])
        (c2_point,) = kzg.commit(backend, srs, [c2])
    seed = transcript.seed(gamma, c2_point)
    xi = point_of(seed)
    shifted = xi * domain.omega % r

    with job.phase("round 3"):
        at_xi = [*(fixed[name] for name in NAMES), *(made[name] for name in "abcz")]
        queries = [(v, xi) for v in at_xi] + [(made[name], shifted) for name in ("z", "T1", "T2")]
        evaluations = Evaluations(*backend.values_at(queries))
        backend.free(*made.values())
    alpha = transcript.alpha(seed, evaluations)

    with job.phase("round 4"):
        d1, rest1 = _divided(backend, c1, xi, 4)
        partly, low2 = _divided(backend, c2, xi, 3)
        d2, high2 = _divided(backend, partly, shifted, 3)
        d0, rest0 = _divided(backend, backend.interleave([fixed[name] for name in IN_C0]), xi, 8)
        f = backend.combine([Term(d0), Term(d1, alpha), Term(d2, alpha * alpha)])
        backend.free(d0, rest0)
        (f_point,) = kzg.commit(backend, srs, [f])
    y = transcript.y(alpha, f_point)

    with job.phase("round 5"):
        divisors = Divisors(vk, xi, y)
        try:
            inv = divisors.inverse()
        except ValueError:
            raise wires.UselessChallenge from None
        inverses = divisors.inverses(inv)
        assert inverses is not None
        _, q1, q2 = inverses.weights(alpha, divisors.m0)
        # C1 is (X⁴ − ξ)·d1 + rest1, C2 is (X³ − ξ)·((X³ − ξω)·d2 + high2) + low2.
        opened = [
            *(Term(d1, q1, 4), Term(d1, -q1 * xi), Term(rest1, q1)),
            *(Term(d2, q2, 6), Term(d2, -q2 * (xi + shifted), 3), Term(d2, q2 * xi * shifted)),
            *(Term(high2, q2, 3), Term(high2, -q2 * xi), Term(low2, q2)),
            Term(f, -divisors.m0),
        ]
        without_c0 = backend.combine(opened)
        backend.free(d1, rest1, d2, high2, low2, f)
        c0 = backend.interleave([fixed[name] for name in IN_C0])
        whole = backend.combine([Term(c0), Term(without_c0)])
        backend.free(c0, without_c0)
        quotient, rest = _divided(backend, whole, y, 1)
        (w2_point,) = kzg.commit(backend, srs, [quotient])
        backend.free(quotient, rest, *fixed.values(), srs)
    return Proof(np.stack([c1_point, c2_point, f_point, w2_point]), evaluations, inv)


def _ending(backend: Backend, values: Vector, last: Sequence[int]) -> Vector:
    """A column whose last rows, which are 0, become these; the column that is given goes."""
    rows = wires.short(backend, last)
    found = backend.combine([Term(values), Term(rows, 1, len(values) - RESERVED)], len(values))
    backend.free(values, rows)
    return found


def _gates_quotient(
    backend: Backend,
    domain: Domain,
    fixed: Mapping[str, Vector],
    made: Mapping[str, Vector],
    public: Sequence[int],
) -> Vector:
    """T0, of 2n coefficients."""
    constants = wires.constants(backend, domain, fixed["Qc"], public)
    parts = _T0.quotient(backend, domain, {**fixed, **made, "Qc": constants}, {}, 2)
    backend.free(constants)
    return _joined(backend, parts, domain.size)


def _joined(backend: Backend, parts: Sequence[Vector], n: int) -> Vector:
    """A polynomial from its parts of n coefficients, in their place."""
    found = backend.combine([Term(part, 1, i * n) for i, part in enumerate(parts)])
    backend.free(*parts)
    return found


def _divided(backend: Backend, polynomial: Vector, root: int, degree: int) -> tuple[Vector, Vector]:
    """What :meth:`Backend.divide` returns, in place of the polynomial."""
    quotient, rest = backend.divide(polynomial, root, degree)
    backend.free(polynomial)
    return quotient, rest


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
        blinding: b1 to b9, for tests only; random by default.
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
        with backend.session(key.demand, key, budget), wires.indices_of(key.path):
            return rounds(key, w, public, drawn, backend)

    return wires.blinded(blinding, random_blinding, attempt)


def checked(
    key: ProvingKey, witness: Witness, public: Sequence[int], proof: Proof, backend: Backend
) -> Proof:
    """See :func:`gpuprover.plonkish.checks.checked`."""
    return checks.checked(verify, key, witness, public, proof, backend)
