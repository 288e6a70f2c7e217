"""The CUDA sources without a GPU: computed on the host, compiled by NVRTC, run as PTX, read as assembly.

What this cannot show: races (tests/kernels/test_races.py), launches, memory, and what the machine makes of
the assembly.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import shutil
import subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpuprover import reference
from gpuprover.cpu import layout
from gpuprover.cuda.device import Program
from gpuprover.cuda.source import header, sources
from gpuprover.curves import BLS12_381, BN254, CURVES, CurveParams, FieldParams, Group
from gpuprover.limbs import Words, address, field_to_words, ints_to_words, words_to_field, words_to_ints
from tests.support import ptx
from tests.support.emulator import EmulatedDevice
from tests.support.nvrtc import Compiled, compile_cubin, disassemble, loops
from tests.support.paths import ROOT
from tests.support.samples import curve_point, field_edges, generator, spec, square_root, to_words

pytestmark = pytest.mark.kernels_offline

RESULTS = ["add", "sub", "mul", "neg", "square", "twice", "negate_if", "reduce"]
FIELDS = ["fq", "fr", "fq2"]


@lru_cache
def build(curve: CurveParams, folder: Path) -> ctypes.CDLL:
    """The sources and tests/kernels/host.cpp as a library."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("there is no C++ compiler for the host build of the kernels")
    for name, text in sources(curve).items():
        (folder / name).write_text(text)
    library = folder / "host.so"
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
    command = (compiler, "-std=c++17", "-O1", *warnings, "-fPIC", "-shared", f"-I{folder}", "-o", library)
    done = subprocess.run([*command, ROOT / "tests/kernels/host.cpp"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {curve.name: tmp_path_factory.mktemp(f"kernels-{curve.name}") for curve in CURVES}


@pytest.fixture
def host(curve: CurveParams, folders: dict[str, Path]) -> ctypes.CDLL:
    return build(curve, folders[curve.name])


def call(function: Any, *arguments: Any) -> None:
    """Arrays go as addresses, integers as 64 bits."""
    for array in arguments:
        assert not isinstance(array, np.ndarray) or address(array) % 16 == 0 or array.dtype == np.uint8
    function.restype = None
    function(*(ctypes.c_int64(address(a) if isinstance(a, np.ndarray) else a) for a in arguments))


# Fields ---------------------------------------------------------------------------------


def params(curve: CurveParams, name: str) -> FieldParams:
    return curve.scalar if name == "fr" else curve.base


def degree(name: str) -> int:
    return 2 if name == "fq2" else 1


def bound(field: FieldParams) -> int:
    """What elements in registers lie below."""
    return 2 * field.modulus if 4 * field.modulus < 1 << 8 * field.bytes else field.modulus


def raw_values(field: FieldParams, rng: random.Random) -> list[int]:
    """Limbs as they stand in registers, in [0, bound): edges of both forms, runs of ones, any."""
    p, top = field.modulus, bound(field)
    values = [*field_edges(p), *map(field.to_montgomery, field_edges(p))]
    values += [v + p for v in values] + [top - 1, top - 2]
    values += [(1 << i) - 1 for i in range(32, 8 * field.bytes, 32)]
    values += [(1 << 8 * field.bytes) - (1 << i) for i in range(32, 8 * field.bytes, 32)]
    return sorted({v % top for v in values} | {rng.randrange(top) for _ in range(8)})


def specification(curve: CurveParams, name: str) -> reference.Field:
    prime = reference.PrimeField(params(curve, name).modulus)
    return prime if degree(name) == 1 else reference.ComplexField(prime)


def elements(curve: CurveParams, name: str, raw: list[Any]) -> list[Any]:
    """What limbs in Montgomery form stand for."""
    field = params(curve, name)
    if degree(name) == 1:
        return [field.from_montgomery(v) for v in raw]
    return [(field.from_montgomery(v), field.from_montgomery(w)) for v, w in raw]


def raw_words(curve: CurveParams, name: str, raw: list[Any]) -> Words:
    flat = raw if degree(name) == 1 else [c for pair in raw for c in pair]
    return ints_to_words(flat, params(curve, name).limbs)


def read_raw(curve: CurveParams, name: str, words: Words) -> list[Any]:
    flat = words_to_ints(words)
    assert max(flat) < bound(params(curve, name)), "a result is out of its range"
    return flat if degree(name) == 1 else [*zip(flat[::2], flat[1::2], strict=True)]


def sample(curve: CurveParams, name: str, rng: random.Random) -> list[Any]:
    values = raw_values(params(curve, name), rng)
    if degree(name) == 1:
        return values
    few = [0, 1, params(curve, name).modulus, values[-1], *rng.sample(values, 5)]
    return [*itertools.product(few, repeat=2)]


@pytest.mark.parametrize("name", FIELDS)
def test_field_operations(curve: CurveParams, host: ctypes.CDLL, name: str, rng: random.Random) -> None:
    E, limbs = specification(curve, name), params(curve, name).limbs
    raw = sample(curve, name, rng)
    pairs = [*itertools.product(raw, repeat=2)]
    a, b = (raw_words(curve, name, [*column]) for column in zip(*pairs, strict=True))
    out = np.zeros((len(RESULTS) * len(pairs) * degree(name), limbs), np.uint64)
    flags = np.zeros(len(pairs), np.uint8)
    call(host[f"operations_{name}"], a, b, out, flags, len(pairs))
    results = read_raw(curve, name, out)
    got = elements(curve, name, results)
    for i, (x, y) in enumerate(
        zip(*(elements(curve, name, [*c]) for c in zip(*pairs, strict=True)), strict=True)
    ):
        expected = [E.add(x, y), E.sub(x, y), E.mul(x, y), E.neg(x), E.mul(x, x), E.add(x, x)]
        expected += [E.neg(x) if i % 2 else x, x]
        for k, result in enumerate(RESULTS):
            assert got[len(RESULTS) * i + k] == expected[k], (result, pairs[i])
        assert flags[i] == (x == y) + 2 * (x == E.zero), pairs[i]
    reduced = words_to_ints(raw_words(curve, name, results[RESULTS.index("reduce") :: len(RESULTS)]))
    assert max(reduced) < params(curve, name).modulus


@pytest.mark.parametrize("name", ["fq", "fq2"])
def test_sums_of_products(curve: CurveParams, host: ctypes.CDLL, name: str, rng: random.Random) -> None:
    E = specification(curve, name)
    raw = sample(curve, name, rng)
    top = bound(params(curve, name)) - 1
    largest = top if name == "fq" else (top, top)
    quads = [[largest] * 4, *([rng.choice(raw) for _ in range(4)] for _ in range(3000))]
    columns = [[*column] for column in zip(*quads, strict=True)]
    words = [raw_words(curve, name, column) for column in columns]
    out = np.zeros_like(words[0])
    call(host[f"sums_of_products_{name}"], *words, out, len(quads))
    got = elements(curve, name, read_raw(curve, name, out))
    for result, a, b, c, d in zip(got, *(elements(curve, name, column) for column in columns), strict=True):
        assert result == E.add(E.mul(a, b), E.mul(c, d)), (a, b, c, d)


@pytest.mark.parametrize("name", FIELDS)
def test_inverses(curve: CurveParams, host: ctypes.CDLL, name: str, rng: random.Random) -> None:
    """Besides, numbers with few division steps or many: powers of 2, small ones, inverses of small ones."""
    E, p = specification(curve, name), params(curve, name).modulus
    raw = sample(curve, name, rng)
    if degree(name) == 1:
        raw += [sign * pow(2, k, p) % p for k in range(0, 600, 7) for sign in (1, -1)]
        raw += [rng.randrange(1 << k) for k in range(1, p.bit_length(), 3)]
        raw += [pow(k, -1, p) for k in range(1, 200)]
    a = raw_words(curve, name, raw)
    out = np.zeros_like(a)
    call(host[f"inverses_{name}"], a, out, len(raw))
    got = elements(curve, name, read_raw(curve, name, out))
    assert got == [E.inverse(x) for x in elements(curve, name, raw)]


def test_constants_are_written_for_each_curve(curve: CurveParams) -> None:
    """Numbers in the sources of kernels/ themselves would be true of one curve only."""
    text = header(curve)
    for field in (curve.base, curve.scalar):
        limbs = [f"{field.modulus >> 32 * i & 0xFFFFFFFF:#010x}" for i in range(2 * field.limbs)]
        assert ", ".join(limbs) in text
    for name, source in sources(curve).items():
        assert source == text or "0x" not in source, name


# The group law --------------------------------------------------------------------------


def special_points(curve: CurveParams, group: Group, rng: random.Random) -> list[Any]:
    """Infinity, small multiples and their negatives, a point outside the subgroup, points with x = 0."""
    E = spec(curve, group)
    multiples = [E.scalar_mul(generator(curve, group), k) for k in (1, 2, 3)]
    points = [None, *multiples, *map(E.neg, multiples), curve_point(curve, group, rng)]
    root = square_root(curve, group, E.b)
    if root is not None:
        points += [(E.field.zero, root), (E.field.zero, E.field.neg(root))]
    return points


def test_group_law(curve: CurveParams, host: ctypes.CDLL, group: Group, rng: random.Random) -> None:
    E, size = spec(curve, group), 1 if group is Group.G1 else 2
    pairs = [*itertools.product(special_points(curve, group, rng), repeat=2)]
    p, q = (to_words(curve, group, [*column]) for column in zip(*pairs, strict=True))
    z = field_to_words(curve.base, [rng.randrange(1, curve.q) for _ in range(2 * size)])
    out = np.zeros((6 * len(pairs) * 4 * size, curve.base.limbs), np.uint64)
    call(host[f"group_law_{group.name.lower()}"], p, q, z, out, len(pairs))
    assert max(words_to_ints(out)) < curve.q, "a stored coordinate is not canonical"
    flat = words_to_field(curve.base, out)
    coordinates = flat if size == 1 else [*zip(flat[::2], flat[1::2], strict=True)]

    def affine(k: int) -> Any:
        F = E.field
        x, y, zz, zzz = coordinates[4 * k : 4 * k + 4]
        if zz == F.zero:
            return None
        assert F.mul(zz, F.mul(zz, zz)) == F.mul(zzz, zzz)
        return F.mul(x, F.inverse(zz)), F.mul(y, F.inverse(zzz))

    for k, (P, Q) in enumerate(pairs):
        total = E.add(P, Q)
        signed = [E.neg(P), E.neg(Q)] if k % 2 else [P, Q]
        expected = [total, total, total, E.add(total, total), *signed]
        assert [affine(6 * k + j) for j in range(6)] == expected, (P, Q)


# Vectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("lo", "hi"), [(0, 0), (0, 1), (3, 18), (2, 63)])
def test_vectors(curve: CurveParams, lo: int, hi: int, rng: random.Random) -> None:
    """Ranges below, at and above a multiple of the grid's 15 threads; nothing is written outside them."""
    field = curve.scalar
    p, n = field.modulus, 64
    a, b, c = ([*rng.sample(field_edges(p), 8), *(rng.randrange(p) for _ in range(n - 8))] for _ in range(3))
    words = [field_to_words(field, values) for values in (a, b, c)]
    device, program = EmulatedDevice(), Program(curve, "vector.cu")
    addresses = [device.allocate(w.nbytes) for w in words]

    def launch(kernel: str, *arguments: int) -> None:
        for target, w in zip(addresses, words, strict=True):
            device.write(target, w)
        device.launch(program, kernel, 3, 5, *arguments, lo, hi)

    def expect(start: int, values: list[int], otherwise: list[int]) -> None:
        got = np.empty_like(words[0])
        device.read(got, start)
        assert max(words_to_ints(got)) < p
        assert words_to_field(field, got) == [*otherwise[:lo], *values[lo:hi], *otherwise[hi:]]

    for operation, values in (
        (layout.ADD, [(x + y) % p for x, y in zip(a, b, strict=True)]),
        (layout.SUB, [(x - y) % p for x, y in zip(a, b, strict=True)]),
        (layout.MUL, [x * y % p for x, y in zip(a, b, strict=True)]),
    ):
        for into, before in ((2, c), (0, a), (1, b)):  # a vector of its own, or one of the operands
            launch("pointwise", operation, addresses[0], addresses[1], addresses[into])
            expect(addresses[into], values, before)

    launch("multiply_subtract", *addresses)
    expect(addresses[0], [(x * y - z) % p for x, y, z in zip(a, b, c, strict=True)], a)

    # Words of x read as elements are x/R; conversions multiply by R, and back.
    for operation, factor in ((layout.TO_MONTGOMERY, field.R), (layout.FROM_MONTGOMERY, field.R_inverse)):
        for into, before in ((2, c), (0, a)):
            launch("convert", operation, addresses[0], addresses[into])
            expect(addresses[into], [x * factor % p for x in a], before)


# Compilation ------------------------------------------------------------------------------

DEFAULT_ARCH = "sm_90"
KERNELS = sorted(path.name for path in (ROOT / "kernels").glob("*.cu"))


@lru_cache
def compiled(curve: CurveParams, path: str, arch: str) -> Compiled:
    return compile_cubin(curve, path, (ROOT / path).read_text(), arch)


# What budgets are read of below, in tests/cuda/test_ntt.py and tests/cuda/test_columns.py, is compiled there.
BUDGETED = ("msm.cu", "ntt.cu", "columns.cu")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "pairs.cu" else [])
        for name in KERNELS
        if name not in BUDGETED
    ],
)
def test_compiles(curve: CurveParams, name: str) -> None:
    assert compiled(curve, f"kernels/{name}", DEFAULT_ARCH).cubin.startswith(b"\x7fELF")


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_100", "sm_120"])
@pytest.mark.parametrize("path", [*(f"kernels/{name}" for name in KERNELS), "tests/kernels/budget.cu"])
def test_compiles_for_other_devices(curve: CurveParams, path: str, arch: str) -> None:
    assert all(kernel.spilled == 0 for kernel in compiled(curve, path, arch).kernels.values())


@pytest.mark.parametrize("kernel", ["multiply_fq", "multiply_fr", "square_fq"])
def test_products_in_ptx(curve: CurveParams, kernel: str, rng: random.Random) -> None:
    """The carries as they go in what a device's assembler is given, over all of the range in registers."""
    text = compiled(curve, "tests/kernels/budget.cu", DEFAULT_ARCH).ptx
    name = kernel.rsplit("_", 1)[1]
    field = params(curve, name)
    raw = raw_values(field, rng)
    pairs = [(x, rng.choice(raw)) for x in raw]
    for x, y in pairs:
        a, b = (ints_to_words([v], field.limbs) for v in (x, y))
        out = np.zeros_like(a)
        ptx.run(text, kernel, *((a, out) if kernel == "square_fq" else (a, b, out)))
        factor = x if kernel == "square_fq" else y
        assert words_to_ints(out) == [x * factor * field.R_inverse % field.modulus], (x, y)


def test_mixed_addition_in_ptx(curve: CurveParams, rng: random.Random) -> None:
    """Every special case, with another representative than ZZ = 1."""
    text = compiled(curve, "tests/kernels/budget.cu", DEFAULT_ARCH).ptx
    E, q, field = spec(curve, Group.G1), curve.q, curve.base
    P, Q = generator(curve, Group.G1), curve_point(curve, Group.G1, rng)
    for left, right in itertools.product((None, P, Q), (None, P, E.neg(P), Q)):
        z = rng.randrange(1, q)
        x, y = left or (0, 0)
        scale = z if left else 0
        xyzz = [x * z**2, y * z**3, scale**2, scale**3]
        p, affine = field_to_words(field, xyzz), to_words(curve, Group.G1, [right])
        ptx.run(text, "add_affine_g1", p, affine)
        x, y, zz, zzz = words_to_field(field, p)
        got = (x * pow(zz, -1, q) % q, y * pow(zzz, -1, q) % q) if zz else None
        assert got == E.add(left, right), (left, right)


# (wide multiplications, registers) a kernel may take; what it takes is in kernels/README.md.
BUDGETS = {
    "bn254": {
        "multiply_fq": (135, 40),
        "multiply_fr": (135, 40),
        "square_fq": (105, 40),
        "add_affine_g1": (2100, 112),
    },
    "bls12-381": {
        "multiply_fq": (300, 56),
        "multiply_fr": (135, 40),
        "square_fq": (230, 56),
        "add_affine_g1": (4700, 160),
    },
}
LARGE_BUDGETS = {
    "bn254": {"add_g1": (2900, 144), "add_affine_g2": (6000, 255)},
    "bls12-381": {"add_g1": (6500, 200)},
}


# Kernels of kernels/msm.cu in G1: what they hold beside additions is little, and their registers are bounded.
SUM_BUDGETS = {
    "bn254": {
        "accumulate": (2000, 128),
        "combine": (2750, 128),
        "multiply_row": (2200, 128),
        "multiply_fixed": (3150, 136),
    },
    "bls12-381": {
        "accumulate": (4400, 168),
        "combine": (6150, 200),
        "multiply_row": (4800, 184),
        "multiply_fixed": (7000, 192),
    },
}
# A point in two lanes: wide multiplications of one lane.
SUM_BUDGETS_G2 = {
    "bn254": {
        "accumulate": (3050, 168),
        "combine": (4200, 168),
        "multiply_row": (3450, 184),
        "multiply_fixed": (5000, 184),
    },
    "bls12-381": {
        "accumulate": (6750, 255),
        "combine": (9400, 255),
        "multiply_row": (7700, 255),
        "multiply_fixed": (11000, 255),
    },
}


# add_pairs of kernels/pairs.cu: wide multiplications of one lane; registers with which as many blocks are
# resident as the source says.
PAIR_BUDGETS = {
    ("bn254", 1): (1550, 128),
    ("bn254", 2): (2650, 128),
    ("bls12-381", 1): (3450, 255),
    ("bls12-381", 2): (5900, 255),
}


def wide_multiplications(opcodes: Counter[str]) -> int:
    return sum(n for o, n in opcodes.items() if o.startswith(("IMAD.WIDE", "IMAD.HI")))


def check_budgets(budgets: dict[str, tuple[int, int]], done: Compiled, folder: Path) -> None:
    opcodes = disassemble(done.cubin, folder)
    for name, (multiplications, registers) in budgets.items():
        kernel = done.kernels[name]
        wide = wide_multiplications(opcodes[name])
        print(f"{name}: {wide} wide of {opcodes[name].total()} instructions, {kernel.registers} registers")
        assert 0 < wide <= multiplications, name
        # One for each multiple of p; more are lower halves that were not paired with their upper ones. The
        # division steps of an inverse have others.
        inverting = 250 if name.startswith(("multiply_row", "multiply_fixed")) else 0
        assert opcodes[name]["IMAD"] + opcodes[name]["IMAD.X"] <= wide / 8 + inverting, name
        assert kernel.registers <= registers, name
        assert (kernel.spilled, kernel.stack) == (0, 0), name


def test_budgets(curve: CurveParams, tmp_path: Path) -> None:
    done = compiled(curve, "tests/kernels/budget.cu", DEFAULT_ARCH)
    check_budgets(BUDGETS[curve.name], done, tmp_path)


@pytest.mark.slow
def test_budgets_of_large_kernels(curve: CurveParams, tmp_path: Path) -> None:
    done = compiled(curve, "tests/kernels/budget_large.cu", DEFAULT_ARCH)
    check_budgets(LARGE_BUDGETS[curve.name], done, tmp_path)


# A minute of compilation for the wider field.
@pytest.mark.parametrize(
    "curve", [BN254, pytest.param(BLS12_381, marks=pytest.mark.slow)], ids=lambda c: c.name
)
def test_budgets_of_sums(curve: CurveParams, tmp_path: Path) -> None:
    check_budgets(SUM_BUDGETS[curve.name], compiled(curve, "kernels/msm.cu", DEFAULT_ARCH), tmp_path)


@pytest.mark.slow
def test_budgets_of_sums_in_g2(curve: CurveParams, tmp_path: Path) -> None:
    path = "kernels/msm.cu"
    done = compile_cubin(curve, path, (ROOT / path).read_text(), DEFAULT_ARCH, "-DGROUP=2")
    check_budgets(SUM_BUDGETS_G2[curve.name], done, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2])
def test_budgets_of_pairs(curve: CurveParams, group: int, tmp_path: Path) -> None:
    path = "kernels/pairs.cu"
    done = compile_cubin(curve, path, (ROOT / path).read_text(), DEFAULT_ARCH, f"-DGROUP={group}")
    wide, registers = PAIR_BUDGETS[curve.name, group]
    counts, kernel = disassemble(done.cubin, tmp_path)["add_pairs"], done.kernels["add_pairs"]
    found = wide_multiplications(counts)
    print(f"add_pairs: {found} wide of {counts.total()} instructions, {kernel.registers} registers")
    assert 0 < found <= wide
    assert kernel.registers <= registers
    assert kernel.spilled == 0


@pytest.mark.slow
def test_an_addition_in_pairs_takes_two_thirds(curve: CurveParams, tmp_path: Path) -> None:
    """Wide multiplications in the loops of the kernels in G1, without what rarely runs: doublings."""
    limbs = 2 * curve.base.limbs
    product, square = 2 * limbs**2, limbs**2 + limbs * (limbs + 1) // 2
    path, found = "kernels/pairs.cu", {}
    pairs = compile_cubin(curve, path, (ROOT / path).read_text(), DEFAULT_ARCH, "-DGROUP=1")
    for kernel, cubin in (
        ("add_pairs", pairs.cubin),
        ("accumulate", compiled(curve, "kernels/msm.cu", DEFAULT_ARCH).cubin),
    ):
        found[kernel] = [*map(wide_multiplications, loops(cubin, kernel, tmp_path))]
    # Those of add_pairs: divisors, products of a block, matrices of an inverse, inverses of a block, sums.
    divisors, _, matrix, _, sums = (n for n in found["add_pairs"] if n >= square / 2)
    (accumulate,) = (n for n in found["accumulate"] if n >= square)
    doubling = 2 * product + 3 * square + 3 * product // 2
    paired, mixed = divisors + sums - square, accumulate - doubling
    print(f"{paired} in pairs, {mixed} in accumulate; a matrix {matrix}")
    assert 5 * product + square <= paired <= 5 * product + square + 25
    assert paired < 0.67 * mixed
