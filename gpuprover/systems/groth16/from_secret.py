"""Groth16 setup from a secret of this machine; formulas in :mod:`.setup`.

τ, α, β, γ, δ are drawn from the operating system and forgotten. Whoever runs it could have kept them, so such
a key is for tests, demos and benchmarks.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from gpuprover.backend import Backend, Form, Vector
from gpuprover.curves import Group
from gpuprover.formats.files import Pathish
from gpuprover.formats.r1cs import R1CS, SparseRows
from gpuprover.limbs import Words, generator, ints_to_words
from gpuprover.polynomial import Domain
from gpuprover.systems.groth16 import key as zk
from gpuprover.systems.groth16.consistency import log_domain
from gpuprover.systems.groth16.key import KeyPoints
from gpuprover.systems.groth16.key_warnings import INSECURE
from gpuprover.systems.groth16.key_writer import BLOCK_TERMS, KeySections, in_blocks
from gpuprover.systems.system import SetupResult


def setup_insecure(r1cs: R1CS, zkey_path: Pathish, backend: Backend) -> SetupResult:
    """Writes a complete proving key from a fresh local secret.

    Raises:
        UnsupportedFile: the circuit needs a larger domain than the curve's scalar field offers.
    """
    curve, log_n = r1cs.curve, log_domain(r1cs)
    r, domain = curve.r, Domain(curve.scalar, log_n)
    alpha, beta, gamma, delta = (1 + secrets.randbelow(r - 1) for _ in range(4))
    tau = _secret_outside_cosets(domain)

    def multiple(group: Group, scalar: int) -> Words:
        return backend.points.linear_combination(group, generator(curve, group)[None], [scalar])

    points = KeyPoints(
        alpha1=multiple(Group.G1, alpha),
        beta1=multiple(Group.G1, beta),
        beta2=multiple(Group.G2, beta),
        gamma2=multiple(Group.G2, gamma),
        delta1=multiple(Group.G1, delta),
        delta2=multiple(Group.G2, delta),
    )
    with KeySections(zkey_path, r1cs, log_n, points, backend) as key:
        key.coefficients()
        with backend.job.phase("secret polynomials"):
            lagrange = np.empty((domain.size, curve.scalar.limbs), dtype=np.uint64)
            at = 0
            # Coefficients are plain integers c, which Form.DOUBLE_MONTGOMERY takes for c·R⁻². Polynomials in
            # that form make up for it, (c·R⁻²)·(L·R²) = c·L, and no matrix has to be copied and converted.
            for block in _lagrange_at(backend, domain, 1, tau, 1, Form.DOUBLE_MONTGOMERY):
                lagrange[at : at + len(block)] = block
                at += len(block)
                backend.job.report(at / domain.size / 4)
            vectors = []
            for i, matrix in enumerate(r1cs.matrices):
                vectors.append(_evaluate(backend, matrix, r1cs.n_wires, lagrange))
                backend.job.report((i + 2) / 4)
            a, b, c = vectors
            _add_public_rows(backend, r1cs, a, lagrange)
            del lagrange
        split, wires = r1cs.n_public + 1, r1cs.n_wires
        for section, first, last, divisor in ((zk.IC, 0, split, gamma), (zk.C, split, wires, delta)):
            inverse = pow(divisor, -1, r)
            summands = [(v, factor * inverse % r) for v, factor in ((a, beta), (b, alpha), (c, 1))]
            k = _linear(backend, summands, first, last)
            key.points(section, _multiples(backend, Group.G1, k))
            if section == zk.IC:  # the order of the file
                # The coset's Lagrange polynomials times Z(τ)/(Z(g)·δ): Z(g) = g^n − 1 on all of the coset.
                g = domain.coset_generator
                at_secret, on_coset = (pow(x, domain.size, r) - 1 for x in (tau, g))
                factor = at_secret * pow(on_coset * delta, -1, r) % r
                h = _lagrange_at(backend, domain, g, tau, factor, Form.CANONICAL)
                key.points(zk.H, _multiples(backend, Group.G1, h))
        key.points(zk.A, _multiples(backend, Group.G1, in_blocks(a)))
        key.points(zk.B1, _multiples(backend, Group.G1, in_blocks(b)))
        key.points(zk.B2, _multiples(backend, Group.G2, in_blocks(b)))
        circuit_hash = key.finish()
    return SetupResult(circuit_hash, domain.size, (INSECURE,))


def _secret_outside_cosets(domain: Domain) -> int:
    """A random τ that is neither 0 nor in the domain or its odd coset."""
    r = domain.field.modulus
    while True:
        tau = 1 + secrets.randbelow(r - 1)
        if pow(tau, domain.size, r) not in (1, pow(domain.coset_generator, domain.size, r)):
            return tau


def _lagrange_at(
    backend: Backend, domain: Domain, shift: int, tau: int, factor: int, form: Form
) -> Iterator[Words]:
    """All Lagrange polynomials of the coset shift·⟨ω⟩ at τ, times a factor, in blocks of uint64[n, limbs].

    ℓ_i(τ) = x_i·(τ^n − g^n) / (n·g^n·(τ − x_i)) with x_i = g·ω^i and g the shift.
    """
    r, n, limbs = domain.field.modulus, domain.size, domain.field.limbs
    at_shift = pow(shift, n, r)
    factor = factor * (pow(tau, n, r) - at_shift) * pow(n * at_shift, -1, r) % r
    for start in range(0, n, BLOCK_TERMS):
        ones = np.tile(ints_to_words([1], limbs), (min(BLOCK_TERMS, n - start), 1))
        first = shift * pow(domain.omega, start, r) % r
        x = backend.scale_powers_in_place(backend.upload(ones), first, domain.omega)
        constant = backend.scale_powers_in_place(backend.upload(ones), tau, 1)
        distance = backend.sub(constant, x)
        inverse = backend.batch_inverse(distance)
        values = backend.scale_powers_in_place(backend.mul(inverse, x), factor, 1)
        result = backend.download(values, form)
        backend.free(x, constant, distance, inverse, values)
        yield result


def _evaluate(backend: Backend, matrix: SparseRows, wires: int, lagrange: Words) -> Words:
    """Σ value·lagrange[row] of every wire's terms, canonical; ``lagrange`` in Form.DOUBLE_MONTGOMERY."""
    single = np.broadcast_to(np.zeros(1, dtype=np.uint32), matrix.nnz)
    turned = backend.prepare_matrices(
        1, wires, single, matrix.wires, matrix.row_index(), matrix.values, Form.DOUBLE_MONTGOMERY
    )
    (v,) = backend.spmv(turned, lagrange)
    result = backend.download(v)
    backend.free(turned, v)
    return result


def _add_public_rows(backend: Backend, r1cs: R1CS, a: Words, lagrange: Words) -> None:
    """Adds to A's polynomials the rows of the constant and the public signals."""
    count, first = r1cs.n_public + 1, r1cs.n_constraints
    constraints = backend.upload(a[:count])
    rows = backend.upload(lagrange[first : first + count], Form.DOUBLE_MONTGOMERY)
    total = backend.add(constraints, rows)
    a[:count] = backend.download(total)
    backend.free(constraints, rows, total)


def _linear(
    backend: Backend, summands: Sequence[tuple[Words, int]], first: int, last: int
) -> Iterator[Words]:
    """Σ factor·vector of the elements in [first, last), canonical, in blocks."""
    for start in range(first, last, BLOCK_TERMS):
        stop = min(last, start + BLOCK_TERMS)
        total: Vector = None
        for words, factor in summands:
            v = backend.scale_powers_in_place(backend.upload(words[start:stop]), factor, 1)
            if total is None:
                total = v
            else:
                previous, total = total, backend.add(total, v)
                backend.free(previous, v)
        result = backend.download(total)
        backend.free(total)
        yield result


def _multiples(backend: Backend, group: Group, scalars: Iterable[Words]) -> Iterator[Words]:
    for block in scalars:
        yield backend.fixed_base_mul(group, generator(backend.curve, group), block)
