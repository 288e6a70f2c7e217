"""Calls every kernel once on tiny data, so that it is compiled and in the cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpuprover.backend import Form, Term
from gpuprover.columns import challenge, column, compile_formula
from gpuprover.cpu import encoded_points, membership, ntt, pairing, point_transform, tape
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cpu.jubjub import multiply
from gpuprover.cpu.keccak import keccak256
from gpuprover.cpu.poseidon import sponge
from gpuprover.curves import BLS12_381, CurveParams, Group
from gpuprover.job import Job
from gpuprover.limbs import generator, ints_to_words
from gpuprover.polynomial import Coset, Direction, Domain, Order


def compile_curve(curve: CurveParams, job: Job, proofs_only: bool = False) -> None:
    """All kernels for one curve, or those of proofs; reports progress in the job's current phase."""
    chosen = [step for name, step in steps(curve).items() if not (proofs_only and name in NOT_IN_PROOFS)]
    for i, step in enumerate(chosen):
        job.check()
        step()
        job.report((i + 1) / len(chosen))


NOT_IN_PROOFS = ("combinations G1", "combinations G2")
"""Steps that proofs do without."""


def steps(curve: CurveParams) -> dict[str, Callable[[], object]]:
    """Name -> a call that compiles a part of the curve's kernels; processes may do different ones at once."""
    inner = Job(threads=1)
    backend = CpuBackend(curve, inner)
    words = ints_to_words(range(1, 5), curve.scalar.limbs)
    longer = np.tile(words, (3, 1))  # a block of eight lanes, where there are any, and a rest
    domain = Domain(curve.scalar, 2)
    index = np.zeros(1, dtype=np.uint32)
    points = {group: np.tile(generator(curve, group), (4, 1)) for group in curve.groups}

    def vectors() -> None:
        v = backend.upload(longer)
        backend.add(v, v)
        backend.batch_inverse(v)
        backend.multiply_subtract_in_place(v, v, v)
        backend.scale_powers_in_place(v, 1, 2)
        v = backend.upload(words)
        backend.ntt(v, domain, Direction.FORWARD, Order.NATURAL_TO_NATURAL, Coset.ODD)
        backend.to_coset_in_place([v], domain, Coset.ODD)
        long = Domain(curve.scalar, ntt.LOG_BLOCK + 1)  # so long that no kernel is left out
        backend.to_coset_in_place([backend.upload(np.tile(words, (long.size // 4, 1)))], long, Coset.ODD)
        matrices = backend.prepare_matrices(1, 1, index, index, index, words[:1], Form.DOUBLE_MONTGOMERY)
        backend.spmv(matrices, words)

    def columns() -> None:
        v = backend.upload(np.tile(words, (257, 1)))  # enough for lanes, which take eight ranges at once
        a, b = column("v"), column("v", 1)
        formula = compile_formula([a * b + challenge("y") - a])
        backend.evaluate(formula, {"v": v}, {"y": 2})
        backend.values_at([(v, 2)])
        backend.divide(v, 2)
        backend.running_product(v, v)
        backend.divide(v, 2, 64)
        backend.combine([Term(v), Term(v, 2, 1)])
        backend.signals(words[1:], index, index, words[:1], words[:1])

    def sums(group: Group) -> Callable[[], object]:
        def run() -> None:
            backend.msm(backend.prepare_bases(group, points[group]), words)
            backend.with_multiples(group, points[group])

        return run

    def combinations(group: Group) -> Callable[[], object]:
        def run() -> None:
            backend.fixed_base_mul(group, points[group][0], words)
            starts = np.array([0, 1], dtype=np.int64)
            backend.points.sparse_combination(group, points[group], starts, index, words[1:2])
            backend.points.first_bad_point(group, np.tile(points[group], (membership.WORTHWHILE, 1)))
            if group is Group.G1 and curve.ate is not None and curve.ate.family == "BLS12":
                point_transform.transform_points(curve, points[group], domain.omega, 3, inner)

        return run

    def checks(group: Group) -> Callable[[], object]:
        def run() -> None:
            backend.points.linear_combination(group, points[group][:1], [3])
            backend.points.first_bad_point(group, points[group])
            backend.points.canonical_coordinates(points[group])
            if group is Group.G1:
                backend.points.suffix_sums(points[group])

        return run

    def pairings() -> None:
        for n in (1, pairing.WORTHWHILE):
            g1, g2 = (np.tile(points[group][:1], (n, 1)) for group in (Group.G1, Group.G2))
            backend.points.pairing_check(g1, g2)

    def encoded() -> None:
        encoded_points.first_not_reduced(curve.scalar, words)
        for group in curve.groups:
            plain = encoded_points.to_coordinates(curve, points[group])
            encoded_points.from_coordinates(curve, group, plain)
        if curve.q % 4 == 3:
            xs = encoded_points.to_coordinates(curve, points[Group.G1])[:, : curve.base.limbs]
            encoded_points.from_x(curve, xs, [True] * len(xs))

    def tapes() -> None:
        # Circuits of tapes are over this curve only.
        if curve is BLS12_381:
            nothing = np.zeros(0, dtype=np.int64)
            tape.run(curve.scalar, nothing, words, np.tile(words, (55, 1)), words.copy())

    return {
        "vectors": vectors,
        "columns": columns,
        "sums G1": sums(Group.G1),
        "checks G1": checks(Group.G1),
        "sums G2": sums(Group.G2),
        "checks G2": checks(Group.G2),
        "pairings": pairings,
        "hash": lambda: keccak256(b""),
        "encoded points": encoded,
        "tapes": tapes,
        "sponge": lambda: sponge(curve.scalar, words[:3], words, longer, 2),
        "multiples of Edwards points": lambda: multiply(curve.scalar, 2, (0, 1), 1),
        "combinations G1": combinations(Group.G1),
        "combinations G2": combinations(Group.G2),
    }
