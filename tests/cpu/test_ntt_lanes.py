"""Eight lanes with loose limbs, and transforms with rows and columns of unusual shapes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gpuprover.backend import Form
from gpuprover.cpu import ntt_lanes
from gpuprover.cpu.backend import CpuBackend
from gpuprover.cpu.kernels.jit import jit
from gpuprover.cpu.kernels.lanes_memory import load_lanes, store_lanes, store_words
from gpuprover.cpu.kernels.loose import carried, lowest, settle, times
from gpuprover.cpu.layout import LANES, LIMB_BITS, LIMB_MASK, LaneField, lane_blocks, lane_form
from gpuprover.cpu.path import cpu_path
from gpuprover.curves import CurveParams
from gpuprover.job import Job
from gpuprover.limbs import address, ints_to_words, words_to_ints
from gpuprover.polynomial import Coset, Direction, Domain, Order
from tests.support.samples import field_edges

pytestmark = pytest.mark.skipif(cpu_path().name != "ifma", reason="this CPU lacks AVX-512 IFMA")


@jit
def _loose_operations(F, x, y, out, words, n):
    """out[3i …] = settle(x[i]), x[i]·y[i], carried(x[i]); words[8i …] = lowest(x[i])."""
    for i in range(n):
        a, b = load_lanes(F, x, i), load_lanes(F, y, i)
        store_lanes(out, 3 * i, carried(settle(a)))
        store_lanes(out, 3 * i + 1, carried(times(a, b)))
        store_lanes(out, 3 * i + 2, carried(a))
        store_words(words, 8 * i, 1, lowest(a))


def loose_limbs(rng: random.Random, value: int, limbs: int) -> list[int]:
    """The value in signed limbs far above 2^52, modulo 2^64."""
    out = [(value >> (LIMB_BITS * i)) & LIMB_MASK for i in range(limbs)]
    for i in range(limbs - 1):
        carry = rng.choice((0, 1, -1, rng.randrange(-512, 512)))
        out[i] += carry << LIMB_BITS
        out[i + 1] -= carry
    return [limb % (1 << 64) for limb in out]


def lane_integers(blocks: np.ndarray) -> list[int]:
    """uint64[n, limbs, 8] with carried limbs -> integers, lane by lane."""
    return [
        sum(int(limb) << (LIMB_BITS * j) for j, limb in enumerate(block[:, lane]))
        for block in blocks
        for lane in range(LANES)
    ]


def test_loose_arithmetic(curve: CurveParams, rng: random.Random) -> None:
    f = curve.scalar
    p, limbs = f.modulus, lane_form(f).limbs
    whole = 1 << (LIMB_BITS * limbs)
    multiples = [k * p + d for k in range(whole // p + 1) for d in (-1, 0, 1)]
    values = [
        x for x in [*multiples, *(rng.randrange(whole) for _ in range(300)), whole - 1] if 0 <= x < whole
    ]
    values += [0] * (-len(values) % LANES)
    n = len(values) // LANES
    x = np.array([loose_limbs(rng, v, limbs) for v in values], dtype=np.uint64)
    x = np.ascontiguousarray(x.reshape(n, LANES, limbs).transpose(0, 2, 1))
    factors = [rng.choice((0, 1, p - 1, rng.randrange(p))) for _ in values]
    y = lane_blocks(f, factors)
    out = np.zeros((3 * n, limbs, LANES), dtype=np.uint64)
    words = np.zeros((8 * n, f.limbs), dtype=np.uint64)
    _loose_operations(LaneField(f), address(x), address(y), address(out), address(words), n)
    assert lane_integers(out[2::3]) == values
    for settled, product, value, factor in zip(
        lane_integers(out[0::3]), lane_integers(out[1::3]), values, factors, strict=True
    ):
        assert settled < 2 * p
        assert settled % p == value % p
        assert product < 2 * p
        assert product % p == value * factor % p
    assert words_to_ints(words) == [v % p for v in values]


@pytest.mark.parametrize(("log_row", "log_buffer"), [(4, 2), (6, 12), (12, 12)])
def test_shapes_of_a_transform(
    curve: CurveParams, rng: random.Random, monkeypatch: pytest.MonkeyPatch, log_row: int, log_buffer: int
) -> None:
    """Rows and columns as long as only the largest domains have them, on values that grow the most."""
    domain = Domain(curve.scalar, 16)
    n, r = domain.size, curve.r
    backend = CpuBackend(curve, Job(threads=1))
    edges = field_edges(r)
    for values in ([r - 1] * n, [rng.choice(edges) for _ in range(n)]):
        words = ints_to_words(values, curve.scalar.limbs)
        results = []
        for shape in ((ntt_lanes.LOG_ROW, ntt_lanes.LOG_BUFFER), (log_row, log_buffer)):
            with monkeypatch.context() as patch:
                patch.setattr(ntt_lanes, "LOG_ROW", shape[0])
                patch.setattr(ntt_lanes, "LOG_BUFFER", shape[1])
                patch.setattr(ntt_lanes, "LARGEST_LOG_ROW", max(shape[0], 4))
                for direction in Direction:
                    for order in Order:
                        v = backend.upload(words, Form.MONTGOMERY)
                        backend.ntt(v, domain, direction, order, Coset.ODD)
                        results.append(v.words)
                v = backend.upload(words, Form.MONTGOMERY)
                results.append(backend.to_coset_in_place([v], domain, Coset.ODD)[0].words)
        half = len(results) // 2
        assert all(np.array_equal(a, b) for a, b in zip(results[:half], results[half:], strict=True))
