"""A run that has been stopped gives no result: neither a wrong one nor "all is well"."""

from __future__ import annotations

import ast
import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest

from gpuprover.backend import Backend, Form
from gpuprover.columns import column, compile_formula
from gpuprover.cpu import kernels, membership, pairing
from gpuprover.curves import CurveParams, Group
from gpuprover.errors import Cancelled
from gpuprover.job import Job
from gpuprover.limbs import ints_to_words
from gpuprover.polynomial import Coset, Direction, Domain, Order
from tests.support.samples import point_words


def test_every_kernel_that_can_be_stopped_says_so() -> None:
    """Each ``return`` has a value, and one of them is STOPPED."""
    found = 0
    for module in pkgutil.iter_modules(kernels.__path__):
        for name, kernel in vars(import_module(f"{kernels.__name__}.{module.name}")).items():
            function = getattr(kernel, "py_func", None)
            if function is None or "stop" not in inspect.signature(function).parameters:
                continue
            tree = ast.parse(inspect.getsource(function)).body[0]
            ends = [
                ast.unparse(e.value) if e.value else "" for e in ast.walk(tree) if isinstance(e, ast.Return)
            ]
            assert "STOPPED" in ends, name
            assert "" not in ends, name
            last = tree.body[-1]  # a loop of spmv ends by ``return`` alone
            assert isinstance(last, ast.Return) or ast.unparse(last).startswith("while True:"), name
            found += 1
    assert found >= 14


Work = Callable[[Backend, CurveParams], object]

FEW, MANY = 3, membership.WORTHWHILE + 10


def _transform(size: int) -> Work:
    def run(backend: Backend, curve: CurveParams) -> object:
        domain = Domain(curve.scalar, size)
        v = backend.upload(ints_to_words(range(1, 1 + domain.size), curve.scalar.limbs))
        return backend.ntt(v, domain, Direction.FORWARD, Order.NATURAL_TO_NATURAL, Coset.ODD)

    return run


def _to_coset(backend: Backend, curve: CurveParams) -> object:
    domain = Domain(curve.scalar, 9)
    v = backend.upload(ints_to_words(range(1, 1 + domain.size), curve.scalar.limbs))
    return backend.to_coset_in_place([v], domain, Coset.ODD)


def _spmv(backend: Backend, curve: CurveParams) -> object:
    index = np.zeros(5, dtype=np.uint32)
    values = ints_to_words([1] * 5, curve.scalar.limbs)
    matrices = backend.prepare_matrices(1, 1, index, index, index, values, Form.DOUBLE_MONTGOMERY)
    return backend.spmv(matrices, values)


def _columns(operation: str, n: int = 1100) -> Work:
    """With n so large that lanes take ranges of it."""

    def run(backend: Backend, curve: CurveParams) -> object:
        v = backend.upload(ints_to_words(range(1, n + 1), curve.scalar.limbs))
        if operation == "formula":
            (result,) = backend.evaluate(compile_formula([column("v") * column("v", 1)]), {"v": v})
        elif operation == "quotient":
            result, _ = backend.divide(v, 5)
        elif operation == "quotient of columns":
            result, _ = backend.divide(v, 5, 100)
        else:
            result = backend.running_product(v, v)
        return backend.download(result)

    return run


def _sum(group: Group) -> Work:
    def run(backend: Backend, curve: CurveParams) -> object:
        bases = backend.prepare_bases(group, point_words(curve, group, range(1, 41)))
        return backend.msm(bases, ints_to_words(range(1, 41), curve.scalar.limbs))

    return run


def _combination(value: int) -> Work:
    def run(backend: Backend, curve: CurveParams) -> object:
        points = point_words(curve, Group.G1, range(1, 5))
        values, columns = ints_to_words([value] * 4, curve.scalar.limbs), np.arange(4, dtype=np.uint32)
        return backend.points.sparse_combination(Group.G1, points, np.array([0, 2, 4]), columns, values)

    return run


def _multiples(backend: Backend, curve: CurveParams) -> object:
    (base,) = point_words(curve, Group.G1, [1])
    return backend.fixed_base_mul(Group.G1, base, ints_to_words(range(1, 9), curve.scalar.limbs))


def _points(group: Group, n: int) -> Work:
    def run(backend: Backend, curve: CurveParams) -> object:
        return backend.points.first_bad_point(group, point_words(curve, group, range(1, n + 1)))

    return run


def _pairs(n: int) -> Work:
    def run(backend: Backend, curve: CurveParams) -> object:
        g1, g2 = (point_words(curve, group, [1, -1] * n) for group in Group)
        g1[1::2], g2[1::2] = g1[::2], g2[1::2]
        return backend.points.pairing_check(g1, g2)

    return run


WORK: dict[str, Work] = {
    "short transform": _transform(3),
    "transform": _transform(9),
    "to the coset": _to_coset,
    "product": _spmv,
    "formula": _columns("formula"),
    "formula of few rows": _columns("formula", 5),
    "quotient": _columns("quotient"),
    "short quotient": _columns("quotient", 20),
    "quotient of columns": _columns("quotient of columns"),
    "running product": _columns("running product"),
    "short running product": _columns("running product", 20),
    "sum G1": _sum(Group.G1),
    "sum G2": _sum(Group.G2),
    "sparse sum": _combination(1),
    "sparse sum of multiples": _combination(12345),
    "multiples": _multiples,
    "few points of G2": _points(Group.G2, FEW),
    "many points of G2": _points(Group.G2, MANY),
    "few pairs": _pairs(1),
    "many pairs": _pairs(pairing.WORTHWHILE),
}
WORK_BLS = {"few points of G1": _points(Group.G1, FEW), "many points of G1": _points(Group.G1, MANY)}
"""BN254's G1 is its whole curve: there is nothing to stop."""


@pytest.mark.parametrize("path", ["ifma", "portable"])
@pytest.mark.parametrize("work", [*WORK, *WORK_BLS])
def test_a_stopped_run_raises(
    curve: CurveParams, work: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpuprover.cpu.backend import CpuBackend
    from gpuprover.cpu.path import cpu_path

    if work in WORK_BLS and curve.cofactor == 1:
        pytest.skip("nothing to stop")
    if path == "ifma" and cpu_path().name != "ifma":
        pytest.skip("the CPU has no AVX-512 IFMA")
    monkeypatch.setenv("PROVER_CPU_PATH", path)
    run = {**WORK, **WORK_BLS}[work]
    for threads in (1, 2):
        job = Job(threads=threads)
        backend = CpuBackend(curve, job)
        good = run(backend, curve)
        job.stop[0] = 1
        with pytest.raises(Cancelled):
            run(backend, curve)
        job.resume()
        again = run(backend, curve)
        if isinstance(good, int | bool | np.ndarray | tuple):
            assert np.array_equal(np.array(again, dtype=object), np.array(good, dtype=object))
