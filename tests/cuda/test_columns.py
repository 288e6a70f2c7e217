"""Kernels of columns and polynomials on the emulated device, against plain integers.

The suite that all backends pass has the operations themselves; here they are cut so that few elements take
several blocks, tiles and levels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from gpuprover.backend import Term
from gpuprover.columns import Expression, challenge, column, compile_formula, fold
from gpuprover.cuda.allocation import ALIGNMENT, Arena, Block
from gpuprover.cuda.backend import CudaBackend
from gpuprover.cuda.columns import Columns, Places, Shifted, Span, Tuning
from gpuprover.cuda.device import Address
from gpuprover.cuda.rehearsal import Nothing
from gpuprover.cuda.residency import Residency
from gpuprover.curves import BN254, CurveParams, Group
from gpuprover.errors import OutOfMemory
from gpuprover.job import Job
from gpuprover.limbs import (
    Words,
    field_to_words,
    ints_to_words,
    words_to_field,
    words_to_ints,
    words_to_points,
)
from gpuprover.polynomial import Direction, Domain
from gpuprover.reference import bit_reverse
from tests.kernels.test_offline import DEFAULT_ARCH, compiled, wide_multiplications
from tests.support import cuda_proofs
from tests.support.emulator import EmulatedDevice
from tests.support.nvrtc import disassemble
from tests.support.samples import combination, field_edges, point_words, random_logs

pytestmark = pytest.mark.kernels_offline

SMALL = Tuning(threads=4, value_blocks=4, value_share=1, power_share=2, scan_share=2, wide=64)


@dataclass
class Stage:
    """A device with vectors on it."""

    curve: CurveParams
    rng: random.Random
    device: EmulatedDevice = field(default_factory=EmulatedDevice)
    tuning: Tuning = SMALL

    def __post_init__(self) -> None:
        self.columns = Columns(self.device, self.curve, lambda: None, self.device, self.tuning)

    def values(self, n: int) -> list[int]:
        """Uniform, with an edge among ten."""
        r = self.curve.r
        edges = field_edges(r)
        return [
            self.rng.choice(edges) if self.rng.random() < 0.1 else self.rng.randrange(r) for _ in range(n)
        ]

    def put(self, values: Sequence[int]) -> Span:
        span = self.room(len(values))
        self.device.write(span.at, field_to_words(self.curve.scalar, values))
        return span

    def room(self, n: int) -> Span:
        """A vector with arbitrary contents."""
        return Span(self.device.allocate(max(1, n) * self.curve.scalar.bytes), n)

    def get(self, v: Span) -> list[int]:
        words = np.empty((v.length, self.curve.scalar.limbs), np.uint64)
        self.device.read(words, v.at)
        assert max(words_to_ints(words), default=0) < self.curve.r, "an element is not canonical"
        return words_to_field(self.curve.scalar, words)


@pytest.fixture(params=[False, True], ids=["forward", "reversed"])
def stage(curve: CurveParams, rng: random.Random, request: pytest.FixtureRequest) -> Stage:
    return Stage(curve, rng, EmulatedDevice(reversed=request.param))


# Formulas ----------------------------------------------------------------------------------


def wide_formula(terms: int) -> Expression:
    """A sum whose parts all live until the end: the first one made is used last."""
    parts = [column("a", t) * column("b", -t) for t in range(terms)]
    total = parts[-1]
    for part in reversed(parts[:-1]):
        total = total * part + 1
    return total


@pytest.mark.parametrize("registers", [1 << 20, 600, 63], ids=["wide", "narrow", "in global memory"])
def test_formulas(stage: Stage, registers: int) -> None:
    """Rotations over both ends, shorter columns, constants, results that are no steps."""
    r, n, step = stage.curve.r, 24, 3
    columns = {"a": stage.values(n), "b": stage.values(n), "short": stage.values(8), "one": stage.values(1)}
    a, b, short, one = map(column, columns)
    y = challenge("y")
    results = [
        fold([a * b - short, a * column("a", 1) + one * 7, column("short", -3) * column("b", -9)], y),
        wide_formula(6),
        a,
        y + 5,
        one - column("b", 1000),
    ]
    stage.columns = Columns(
        stage.device, stage.curve, lambda: None, stage.device, replace(SMALL, registers=registers, narrow=2)
    )
    formula = compile_formula(results)
    assert formula.program.registers > 2
    given = {"y": stage.rng.randrange(r)}
    outs = [stage.room(n) for _ in results]
    spans = {name: stage.put(v) for name, v in columns.items()}
    stage.columns.evaluate(formula, spans, given, step, n, [out.at for out in outs])

    def cell(name: str, i: int) -> int:
        v = columns[name]
        return v[i % len(v)]

    def product(i: int, t: int) -> int:
        return cell("a", i + t * step) * cell("b", i - t * step)

    for i in range(n):
        first = cell("a", i) * cell("b", i) - cell("short", i)
        second = cell("a", i) * cell("a", i + step) + cell("one", i) * 7
        third = cell("short", i - 3 * step) * cell("b", i - 9 * step)
        total = product(i, 5)
        for t in reversed(range(5)):
            total = total * product(i, t) + 1
        expected = [
            (first * given["y"] + second) * given["y"] + third,
            total,
            cell("a", i),
            given["y"] + 5,
            cell("one", i) - cell("b", i + 1000 * step),
        ]
        assert [stage.get(out)[i] for out in outs] == [value % r for value in expected], i
    assert stage.device.kernels[-1] == ("evaluate" if registers > 63 else "evaluate_large")


# Sums and places ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 4, 17])
def test_sums_of_shifted_vectors(stage: Stage, n: int) -> None:
    r = stage.curve.r
    vectors = [stage.values(length) for length in (n, 1, 2 * n, 5, 0)]
    shifts = [0, n - 1, -n, 2, 0]
    scalars = [1, r - 1, -5, stage.rng.randrange(r), 3]
    out = stage.room(n)
    spans = [stage.put(v) for v in vectors]
    stage.columns.combine([Shifted(*term) for term in zip(spans, scalars, shifts, strict=True)], out)
    expected = [0] * n
    for v, scalar, shift in zip(vectors, scalars, shifts, strict=True):
        for i, x in enumerate(v):
            if 0 <= i + shift < n:
                expected[i + shift] += scalar * x
    assert stage.get(out) == [x % r for x in expected]
    stage.columns.combine([], out)
    assert stage.get(out) == [0] * n


@pytest.mark.parametrize("n", [1, 2, 9, 31])
def test_powers(stage: Stage, n: int) -> None:
    r = stage.curve.r
    for base, factor in ((stage.rng.randrange(r), stage.rng.randrange(r)), (1, 1), (0, 7), (r - 1, r - 1)):
        out = stage.room(n)
        stage.columns.powers(base, factor, out)
        assert stage.get(out) == [factor * pow(base, i, r) % r for i in range(n)]


@pytest.mark.parametrize("log_n", [0, 1, 4])
def test_powers_in_reversed_order(stage: Stage, log_n: int) -> None:
    r, v, base = stage.curve.r, stage.values(1 << log_n), stage.rng.randrange(stage.curve.r)
    span = stage.put(v)
    stage.columns.scale_reversed(span, base)
    in_order = [x * pow(base, i, r) % r for i, x in enumerate(bit_reverse(v))]
    assert stage.get(span) == bit_reverse(in_order)


def test_places(stage: Stage) -> None:
    """Gathers, and vectors interleaved and taken apart again."""
    v = stage.values(11)
    indices = np.array([stage.rng.randrange(11) for _ in range(18)], np.uint32)
    out = stage.room(18)
    assert stage.columns.gather(stage.put(v), indices, out.at) == 0
    assert stage.get(out) == [v[i] for i in indices]
    assert stage.columns.gather(stage.put(v), np.array([10, 11, 1 << 31], np.uint32), out.at) == 2
    assert stage.get(out)[:3] == [v[10], 0, 0], "what is not there is not read"
    parts = [stage.values(length) for length in (6, 4, 0)]
    joined = stage.room(18)
    stage.columns.interleave([stage.put(part) for part in parts], joined)
    padded = [part + [0] * (6 - len(part)) for part in parts]
    assert stage.get(joined) == [x for row in zip(*padded, strict=True) for x in row]
    apart = [stage.room(6) for _ in range(3)]
    stage.columns.deinterleave(joined, [span.at for span in apart])
    assert [stage.get(span) for span in apart] == padded


@pytest.mark.parametrize("length", [0, 3, 16, 17, 50])
def test_polynomials_on_a_coset(stage: Stage, length: int) -> None:
    """Shorter than the domain and longer, which a transform takes then."""
    r, n, g, v = stage.curve.r, 16, stage.rng.randrange(stage.curve.r), stage.values(length)
    out = stage.room(n)
    stage.columns.fold_onto_coset(stage.put(v), g, out)
    scaled = [x * pow(g, i, r) for i, x in enumerate(v)]
    assert stage.get(out) == [sum(scaled[i::n]) % r for i in range(n)]


@pytest.mark.parametrize("count", [1, 7, 64])
def test_signals(stage: Stage, count: int) -> None:
    """Sums as balanced trees come in as many passes as there are; chains and wrong indices are told."""
    r, known = stage.curve.r, 9
    limbs = stage.curve.scalar.limbs
    dtype = np.dtype([("x", "<u4"), ("y", "<u4"), ("a", "<u8", limbs), ("b", "<u8", limbs)])
    places, records = Places(dtype.itemsize, 0, 4, 8, 8 + 8 * limbs), np.zeros(count, dtype)
    values, factors = stage.values(known), stage.values(2 * count)
    queue = [stage.rng.randrange(known) for _ in range(count + 1)]
    for i in range(count):
        (x, y), queue = queue[:2], [*queue[2:], known + i]
        records[i] = x, y, *field_to_words(stage.curve.scalar, factors[2 * i : 2 * i + 2])
        values.append((factors[2 * i] * values[x] + factors[2 * i + 1] * values[y]) % r)
    out = stage.put([*values[:known], *[0] * count])
    assert stage.columns.combine_signals(out.at, known, records.view(np.uint8), places, count)
    assert stage.get(out) == values
    wrong = records.copy()
    wrong["y"][count // 2] = known + count // 2
    assert not stage.columns.combine_signals(out.at, known, wrong.view(np.uint8), places, count)
    if count > 20:
        records["x"][1:] = known + np.arange(count - 1)
        assert not stage.columns.combine_signals(out.at, known, records.view(np.uint8), places, count)


# Values at points --------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [(0,), (1,), (4, 3), (5,), (16, 1, 0, 17), (99, 40)])
def test_values_at_points(stage: Stage, lengths: tuple[int, ...]) -> None:
    """Of one block and of four, with a coefficient a thread or several; short ones beside long."""
    r = stage.curve.r
    queries = [(stage.values(n), stage.rng.choice((0, 1, r - 1, stage.rng.randrange(r)))) for n in lengths]
    queries.append((queries[0][0], stage.rng.randrange(r)))
    found = stage.columns.values([(stage.put(v), x) for v, x in queries])
    assert found == [sum(c * pow(x, i, r) for i, c in enumerate(v)) % r for v, x in queries]
    assert stage.columns.values([]) == []


# Scans -------------------------------------------------------------------------------------


def divided(v: list[int], root: int, degree: int, r: int) -> list[int]:
    """Remainder and quotient of the division by X^degree − root, one after the other."""
    rest = [*v]
    for i in reversed(range(degree, len(v))):
        rest[i - degree] = (rest[i - degree] + root * rest[i]) % r
    return rest


@pytest.mark.parametrize(
    ("n", "degree"),
    [
        *((n, 1) for n in (1, 2, 7, 8, 9, 16, 33, 150)),
        *((n, 2) for n in (2, 3, 16, 17, 61)),
        *((n, 3) for n in (3, 4, 5, 29)),
        (40, 4),
        *((n, 5) for n in (5, 6, 11, 50)),
        *((n, 9) for n in (9, 30, 45)),
        (200, 64),
        (64, 64),
        (65, 64),
    ],
)
def test_division(stage: Stage, n: int, degree: int) -> None:
    """In a tile, in several, in tiles of tiles; chains in a group, beside each other, over blocks."""
    r, v = stage.curve.r, stage.values(n)
    for root in (stage.rng.randrange(r), 1, 0, r - 1):
        span, both = stage.put(v), stage.room(n)
        quotient = Address(both.at + degree * stage.curve.scalar.bytes)
        stage.columns.divide(span, root, degree, quotient, both.at)
        assert stage.get(both) == divided(v, root, degree, r), root
        assert stage.get(span) == v


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 31, 150])
def test_running_products(stage: Stage, n: int) -> None:
    r, v = stage.curve.r, [x or 1 for x in stage.values(n)]
    for start, factors in ((1, v), (stage.rng.randrange(r), [*v[: n // 2], 0, *v[n // 2 + 1 :]])):
        span, out = stage.put(factors), stage.room(n)
        expected, product = [], start
        for x in factors:
            product = product * x % r
            expected.append(product)
        stage.columns.running_product(span, start, out.at)
        assert stage.get(out) == expected
        assert stage.get(span) == factors
        stage.columns.running_product(span, start, span.at)
        assert stage.get(span) == expected, "in place"


def test_nothing_stays_allocated(rng: random.Random) -> None:
    stage = Stage(BN254, rng)
    v = stage.put(stage.values(70))
    used = stage.device.used
    out = stage.room(70)
    taken = stage.device.used
    quotient = Address(out.at + stage.curve.scalar.bytes)
    stage.columns.divide(v, 5, 1, quotient, out.at)
    stage.columns.running_product(v, 5, out.at)
    stage.columns.values([(v, 3)])
    stage.columns.powers(3, 4, out)
    stage.columns.combine([Shifted(v, 1, 0)], out)
    assert stage.device.used == taken > used


# Compilation -------------------------------------------------------------------------------

# (wide multiplications, registers) of a kernel: as many products as its source has, and a few for indices.
BUDGETS = {
    "evaluate": (145, 56),
    "evaluate_large": (150, 56),
    "combine": (135, 56),
    "values_by_blocks": (290, 64),
    "division_totals": (300, 72),
    "division_results": (440, 80),
    "product_totals": (290, 64),
    "product_results": (425, 64),
}


def test_budgets(curve: CurveParams, tmp_path: Path) -> None:
    done = compiled(curve, "kernels/columns.cu", DEFAULT_ARCH)
    opcodes = disassemble(done.cubin, tmp_path)
    for name, (multiplications, registers) in BUDGETS.items():
        wide, kernel = wide_multiplications(opcodes[name]), done.kernels[name]
        print(f"{name}: {wide} wide of {opcodes[name].total()} instructions, {kernel.registers} registers")
        assert 0 < wide <= multiplications, name
        assert kernel.registers <= registers, name
    assert all((kernel.spilled, kernel.stack) == (0, 0) for kernel in done.kernels.values())


# Prefixes of bases -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "with multiples", "sent"])
def test_sums_over_the_first_bases(kind: str, rng: random.Random, quick_sums: None) -> None:
    """Of bases on the device, with multiples and without, and of those that are sent for each sum."""
    curve, n = BN254, 12
    gpu = cuda_proofs.opened()
    backend = cuda_proofs.backend_on(gpu, curve, Job(threads=1))
    logs = random_logs(rng, n)
    points = point_words(curve, Group.G1, logs)
    bases = backend.prepare_bases(Group.G1, points, 1 << 20 if kind == "with multiples" else None)
    assert bases.plan is not None
    assert (bases.plan.depth > 1) is (kind == "with multiples")
    if kind == "sent":
        bases = replace(bases, plan=replace(bases.plan, n=5), block=None, points=points)
    for count in (n, n - 1, 1, 0):
        scalars = [rng.randrange(curve.r) for _ in range(count)]
        words = ints_to_words(scalars, curve.scalar.limbs)
        v = backend.upload(words)
        others = [rng.randrange(curve.r) for _ in range(n)]
        requests = [
            ([bases], v),
            ([bases, bases], words),
            ([bases], ints_to_words(others, curve.scalar.limbs)),
        ]
        want = combination(curve, Group.G1, logs[:count], scalars)
        whole = combination(curve, Group.G1, logs, others)
        found = [words_to_points(curve, Group.G1, np.array(sums)) for sums in backend.msm_many(requests)]
        assert found == [[want], [want, want], [whole]]
        backend.free(v)


# Memory ------------------------------------------------------------------------------------


def rounds(backend: CudaBackend, witness: Words, log_n: int) -> list[Words | int]:
    """Steps as a prover of PLONK's kind has them, and what comes back to the host."""
    domain, n, r = Domain(backend.curve.scalar, log_n), 1 << log_n, backend.curve.r
    values = backend.upload(witness)
    places = np.arange(n, dtype=np.uint32)
    a, b = (backend.gather(values, (places * k + 1) % len(witness)) for k in (3, 5))
    z = backend.running_product(a, b)
    cut = backend.combine([Term(z)], n)
    backend.free(values, z)
    for column_ in (a, b, cut):
        backend.ntt(column_, domain, Direction.INVERSE)
    cosets = [pow(7, k, r) for k in (1, 2)]
    extended = {name: backend.extend(v, domain, cosets) for name, v in (("a", a), ("b", b), ("z", cut))}
    formula = compile_formula([column("z", 1) * column("b") - column("z") * column("a") * challenge("y")])
    parts = []
    for k in range(len(cosets)):
        cells = {name: on[k] for name, on in extended.items()}
        parts += backend.evaluate(formula, cells, {"y": 9})
        backend.free(*cells.values())
    joined = backend.interleave(parts)
    quotient, remainder = backend.divide(joined, 11)
    found: list[Words | int] = [*backend.values_at([(a, 3), (joined, 4), (quotient, 5)])]
    found += [backend.download(v) for v in (quotient, remainder)]
    backend.free(a, b, cut, joined, quotient, remainder, *parts)
    return found


def test_memory_is_known_from_a_rehearsal(curve: CurveParams, rng: random.Random) -> None:
    """The same steps on a device that does nothing take as much: an arena of that size is enough."""
    log_n = 5
    words = ints_to_words([rng.randrange(1, curve.r) for _ in range(50)], curve.scalar.limbs)
    gpu = cuda_proofs.opened()
    expected = rounds(cuda_proofs.backend_on(gpu, curve), words, log_n)
    hollow = cuda_proofs.backend_on(Residency(Nothing(gpu.device)), curve)
    arena = hollow._memory = Arena(ALIGNMENT, 1 << 62)
    rounds(hollow, words, log_n)
    used = gpu.pool.used
    block = Block(gpu.pool, arena.extent)
    backend = cuda_proofs.backend_on(gpu, curve)
    backend._memory = Arena(block.address, arena.extent)
    for _ in range(2):  # nothing stays from the first time
        for got, want in zip(rounds(backend, words, log_n), expected, strict=True):
            assert np.array_equal(got, want)
    block.free()
    assert gpu.pool.used == used
    short = cuda_proofs.backend_on(gpu, curve)
    block = Block(gpu.pool, arena.extent)
    short._memory = Arena(block.address, arena.extent - ALIGNMENT)
    with pytest.raises(OutOfMemory):
        rounds(short, words, log_n)
