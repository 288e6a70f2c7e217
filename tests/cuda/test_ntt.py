"""Transforms on the emulated device against the definition: passes, orders, directions, cosets, tables."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from gpuprover import reference
from gpuprover.cuda.device import Address
from gpuprover.cuda.ntt import LEAST_LEVELS, LEVELS, LOG_COMPACT, Transform, scratch_bytes, split, table_bytes
from gpuprover.curves import CURVES, CurveParams, FieldParams
from gpuprover.errors import DeviceError, OutOfMemory
from gpuprover.limbs import Words, field_to_words, ints_to_words, words_to_field, words_to_ints
from gpuprover.polynomial import Coset, Direction, Domain, Order
from tests.kernels.test_offline import DEFAULT_ARCH, ROOT, compiled, raw_values
from tests.support import ptx
from tests.support.emulator import EmulatedDevice, Faults
from tests.support.nvrtc import compile_cubin, disassemble
from tests.support.samples import fast_dft, field_edges

pytestmark = pytest.mark.kernels_offline

FORWARD, INVERSE = Direction.FORWARD, Direction.INVERSE
ALL = [*product(Direction, Order, Coset)]


@dataclass(frozen=True)
class Split:
    """Passes, and tiles small enough that a launch has several."""

    levels: tuple[int, ...]
    log_tile: int = 11
    compact: bool = False

    @property
    def log_n(self) -> int:
        return sum(self.levels)


SPLITS = [
    *(Split((n,)) for n in range(9)),
    Split((3, 3), 4),
    Split((6, 3), 7),
    Split((3, 3, 3), 5),
    Split((3, 4, 3), 6, compact=True),
    Split((4, 3, 3), 4),
    Split((5, 5), 6, compact=True),
    Split((3, 8), 8),
    Split((8, 3), 11),
    Split((4, 4, 4), 7),
]


def name(s: Split) -> str:
    return "+".join(map(str, s.levels)) + f" in 2^{s.log_tile}" + (" compact" if s.compact else "")


class OtherCoset(Domain):
    """A domain as a field's largest is: its coset's generator is no root of twice its order."""

    @property
    def coset_generator(self) -> int:  # type: ignore[override]
        return self.field.non_residue**2 % self.field.modulus


def values(field: FieldParams, n: int, rng: random.Random) -> list[int]:
    """Edges of both forms, at most half of the vector, and any others."""
    edges = [*field_edges(field.modulus), *map(field.from_montgomery, field_edges(field.modulus))]
    x = [v % field.modulus for v in rng.sample(edges, min(n // 2, len(edges)))]
    x += [rng.randrange(field.modulus) for _ in range(n - len(x))]
    rng.shuffle(x)
    return x


def expected(domain: Domain, x: list[int], direction: Direction, order: Order, coset: Coset) -> list[int]:
    """By the definition; x is in natural order, whatever the order of the transform's input."""
    field, p, n = domain.field, domain.field.modulus, domain.size
    g = domain.coset_generator if coset is Coset.ODD else 1
    if direction is FORWARD:
        y = fast_dft(field, x, domain.omega, g)
    else:
        y = fast_dft(field, x, pow(domain.omega, -1, p))
        factor, step = pow(n, -1, p), pow(g, -1, p)
        for i in range(n):
            y[i], factor = y[i] * factor % p, factor * step % p
    return reference.bit_reverse(y) if order is Order.NATURAL_TO_REVERSED else y


def put(device: EmulatedDevice, words: Words) -> Address:
    at = device.allocate(words.nbytes)
    device.write(at, words)
    return at


def get(device: EmulatedDevice, at: int, field: FieldParams, n: int) -> list[int]:
    words = np.empty((n, field.limbs), np.uint64)
    device.read(words, at)
    assert max(words_to_ints(words)) < field.modulus, "an element is not canonical"
    return words_to_field(field, words)


def transform_of(device: EmulatedDevice, domain: Domain, s: Split) -> Transform:
    return Transform(device, device, domain, s.compact, levels=s.levels, log_tile=s.log_tile)


def check_all(device: EmulatedDevice, domain: Domain, s: Split, rng: random.Random) -> None:
    field, n = domain.field, domain.size
    transform = transform_of(device, domain, s)
    x = values(field, n, rng)
    v, scratch = device.allocate(n * field.bytes), device.allocate(scratch_bytes(domain))
    for direction, order, coset in ALL:
        given = reference.bit_reverse(x) if order is Order.REVERSED_TO_NATURAL else x
        device.write(v, field_to_words(field, given))
        natural = order is Order.NATURAL_TO_NATURAL
        at = transform.ntt(v, scratch if natural else None, direction, order, coset)
        assert at == (scratch if natural and n > 1 else v)
        want = expected(domain, x, direction, order, coset)
        assert get(device, at, field, n) == want, (direction, order, coset)
    device.write(v, field_to_words(field, x))
    transform.to_coset([v], Coset.ODD)
    coefficients = expected(domain, x, INVERSE, Order.NATURAL_TO_NATURAL, Coset.NONE)
    on_coset = expected(domain, coefficients, FORWARD, Order.NATURAL_TO_NATURAL, Coset.ODD)
    assert get(device, v, field, n) == on_coset
    transform.to_coset([v], Coset.NONE)
    assert get(device, v, field, n) == on_coset
    transform.close()


# Products with constants -------------------------------------------------------------------


def test_constants_in_ptx(curve: CurveParams, rng: random.Random) -> None:
    """Over all of the range that x may have in a register, as a device's assembler is given it."""
    field, p = curve.scalar, curve.r
    R = 1 << 8 * field.bytes
    text = compiled(curve, "tests/kernels/constants.cu", DEFAULT_ARCH).ptx
    raw = raw_values(field, rng)
    known = [1, 2, p - 1, p - 2, p // 2, R % p, *(rng.randrange(1, p) for _ in range(6))]
    pairs = [*((x, rng.choice(known)) for x in raw), *((raw[-1], w) for w in known)]
    for x, w in pairs:
        a, constant = (ints_to_words(v, field.limbs) for v in ([x], [w, w * R // p]))
        for kernel, want in (("times_constant", x * w % p), ("times_negated", -x * w % p)):
            out = np.zeros_like(a)
            ptx.run(text, kernel, a, constant, out)
            assert words_to_ints(out) == [want], (kernel, x, w)
    inverse = ints_to_words([-pow(p, -1, R) % R], field.limbs)
    for x in raw:
        made = np.zeros((2, field.limbs), np.uint64)
        ptx.run(text, "make_constant", ints_to_words([x], field.limbs), inverse, made)
        w = field.from_montgomery(x)
        assert words_to_ints(made) == [w, w * R // p], x


# Transforms -------------------------------------------------------------------------------


@pytest.mark.parametrize("s", SPLITS, ids=name)
def test_transforms(curve: CurveParams, s: Split, rng: random.Random) -> None:
    check_all(EmulatedDevice(), Domain(curve.scalar, s.log_n), s, rng)


@pytest.mark.parametrize("s", [Split((2,)), Split((7,)), Split((3, 3, 3), 5), Split((5, 4), 6)], ids=name)
def test_transforms_with_threads_from_the_last(curve: CurveParams, s: Split, rng: random.Random) -> None:
    check_all(EmulatedDevice(reversed=True), Domain(curve.scalar, s.log_n), s, rng)


@pytest.mark.parametrize(
    "s", [Split((1,)), Split((5,)), Split((3, 4), 5), Split((3, 3, 3), 6, True)], ids=name
)
def test_a_coset_that_is_not_in_the_table(curve: CurveParams, s: Split, rng: random.Random) -> None:
    check_all(EmulatedDevice(), OtherCoset(curve.scalar, s.log_n), s, rng)


@pytest.mark.parametrize("log_n", [9, 13])
def test_as_it_is_split_by_default(curve: CurveParams, log_n: int, rng: random.Random) -> None:
    device, domain = EmulatedDevice(), Domain(curve.scalar, log_n)
    transform = Transform(device, device, domain)
    x = values(curve.scalar, domain.size, rng)
    v = put(device, field_to_words(curve.scalar, x))
    y = fast_dft(curve.scalar, x, domain.omega)
    at = transform.ntt(v, device.allocate(scratch_bytes(domain)), FORWARD)
    assert get(device, at, curve.scalar, domain.size) == y
    transform.to_coset([at])
    want = fast_dft(curve.scalar, x, domain.omega, domain.coset_generator)
    assert get(device, at, curve.scalar, domain.size) == want


@pytest.mark.parametrize("domain_type", [Domain, OtherCoset])
@pytest.mark.parametrize("count", [0, 2, 3, 7])
def test_vectors_side_by_side(
    curve: CurveParams, domain_type: type[Domain], count: int, rng: random.Random
) -> None:
    device, domain = EmulatedDevice(), domain_type(curve.scalar, 7)
    transform = transform_of(device, domain, Split((4, 3), 5))
    xs = [values(curve.scalar, domain.size, rng) for _ in range(count)]
    vectors = [put(device, field_to_words(curve.scalar, x)) for x in xs]
    device.kernels.clear()
    transform.to_coset(vectors)
    if domain_type is Domain:
        assert device.kernels == ["ntt_down", "ntt_middle", "ntt_up"] * -(-count // 3)
    for x, v in zip(xs, vectors, strict=True):
        coefficients = expected(domain, x, INVERSE, Order.NATURAL_TO_NATURAL, Coset.NONE)
        want = fast_dft(curve.scalar, coefficients, domain.omega, domain.coset_generator)
        assert get(device, v, curve.scalar, domain.size) == want


def test_special_vectors(curve: CurveParams) -> None:
    """The largest and the smallest values all over, where lazy sums would leave their range."""
    p, device, domain = curve.r, EmulatedDevice(), Domain(curve.scalar, 8)
    transform = transform_of(device, domain, Split((4, 4), 7))
    n = domain.size
    signs = [pow(-1, i) % p for i in range(n)]
    for x in (
        [0] * n,
        [p - 1] * n,
        signs,
        [p - 1 if i % 4 < 2 else 1 for i in range(n)],
        [1] + [0] * (n - 1),
    ):
        for direction in Direction:
            v = put(device, field_to_words(curve.scalar, x))
            at = transform.ntt(v, device.allocate(scratch_bytes(domain)), direction)
            want = expected(domain, x, direction, Order.NATURAL_TO_NATURAL, Coset.NONE)
            assert get(device, at, curve.scalar, n) == want


# Memory and launches ----------------------------------------------------------------------


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("log_n", [0, 1, LOG_COMPACT, LOG_COMPACT + 1, 10])
def test_memory_of_the_table(curve: CurveParams, log_n: int, compact: bool) -> None:
    device, domain = EmulatedDevice(), Domain(curve.scalar, log_n)
    transform = Transform(device, device, domain, compact)
    assert device.used == device.peak == table_bytes(domain, compact)
    transform.close()
    assert device.used == 0


def test_memory_of_large_tables(curve: CurveParams) -> None:
    """Two vectors', or a sixteenth of that; half where no root of twice the order exists."""
    field, most = curve.scalar, curve.scalar.two_adicity
    for log_n in (20, 24, most):
        pairs = 1 << min(log_n, most - 1)
        whole, compact = (table_bytes(Domain(field, log_n), c) // (2 * field.bytes) for c in (False, True))
        assert pairs < whole < pairs + 100
        assert pairs >> LOG_COMPACT < compact < (pairs >> LOG_COMPACT) + 100


@pytest.mark.parametrize("launch", [1, 2])
def test_nothing_is_kept_when_the_table_cannot_be_made(curve: CurveParams, launch: int) -> None:
    device = EmulatedDevice(faults=Faults(launch=launch))
    with pytest.raises(DeviceError):
        Transform(device, device, Domain(curve.scalar, 9), compact=True)
    assert device.used == 0


def test_the_largest_domain_is_refused() -> None:
    field = max((c.scalar for c in CURVES), key=lambda f: f.two_adicity)
    device = EmulatedDevice()
    with pytest.raises(OutOfMemory):
        Transform(device, device, Domain(field, 32))
    assert device.allocations == 0


@pytest.mark.parametrize("log_n", range(32))
def test_split(log_n: int) -> None:
    levels = split(log_n)
    assert sum(levels) == log_n
    assert len(levels) == max(1, -(-log_n // LEVELS))
    assert max(levels) <= LEVELS
    assert len(levels) == 1 or min(levels) >= LEAST_LEVELS


# Compilation ------------------------------------------------------------------------------

# (wide multiplications, carries and moves by the multiplier, registers) a kernel may take: the four products
# of a level, down, up or both, one of the scaling, some addresses; and two blocks of 256 threads share a
# multiprocessor. Of the carries 12 a product are narrow multiplications that take one.
BUDGETS = {"ntt_down": (560, 160, 128), "ntt_up": (560, 160, 128), "ntt_middle": (960, 280, 128)}


def test_budgets(curve: CurveParams, tmp_path: Path) -> None:
    done = compiled(curve, "kernels/ntt.cu", DEFAULT_ARCH)
    opcodes = disassemble(done.cubin, tmp_path)
    for kernel, (multiplications, moves, registers) in BUDGETS.items():
        report, counts = done.kernels[kernel], opcodes[kernel]
        wide = sum(n for o, n in counts.items() if o.startswith(("IMAD.WIDE", "IMAD.HI")))
        print(f"{kernel}: {wide} wide of {counts.total()} instructions, {report.registers} registers")
        assert 0 < wide <= multiplications, kernel
        moved = counts["IMAD.X"] + counts["IMAD.MOV.U32"]
        print(f"{kernel}: {moved} carries and moves on the multiplier")
        assert moved <= moves, kernel
        # More would be lower halves that were not paired with their upper ones.
        assert counts["IMAD"] <= wide / 8, kernel
        assert report.registers <= registers, kernel
        assert (report.spilled, report.stack) == (0, 0), kernel
        for opcode in ("LDG", "STG", "LDS", "STS"):
            widths = [o for o in counts if o.startswith(opcode)]
            assert widths, opcode
            assert all(".128" in o for o in widths), (kernel, widths)


def test_budget_of_a_product(curve: CurveParams, tmp_path: Path) -> None:
    """28 wide and 8 narrow multiplications for a lower half, 43 for the upper one; the assembler adds 1."""
    done = compiled(curve, "tests/kernels/constants.cu", DEFAULT_ARCH)
    counts = disassemble(done.cubin, tmp_path)["times_constant"]
    assert 99 <= sum(n for o, n in counts.items() if o.startswith(("IMAD.WIDE", "IMAD.HI"))) <= 100
    assert counts["IMAD"] + counts["IMAD.X"] <= 16
    assert done.kernels["times_constant"].spilled == 0


@pytest.mark.slow
def test_compact_variant_compiles(curve: CurveParams) -> None:
    text = (ROOT / "kernels/ntt.cu").read_text()
    done = compile_cubin(curve, "ntt.cu", text, DEFAULT_ARCH, "-DCOMPACT=1")
    for kernel, (_, _, registers) in BUDGETS.items():
        assert done.kernels[kernel].registers <= registers
        assert done.kernels[kernel].spilled == 0
