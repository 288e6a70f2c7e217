"""The number-theoretic transform: radix 2, in place, without a bit-reversal pass where none is asked for.

That is the portable path; on the other, all but the shortest transforms are those of ntt_lanes.py.

Decimation in frequency takes natural to bit-reversed order, decimation in time takes it
back, so a transform and its inverse in a row need no permutation (Gentleman, Sande 1966;
Cooley, Tukey 1965). Stages on long distances pass over the whole vector; once a block fits
the cache, all its remaining stages run before the next block is touched.

Twiddles: one table per field and generator (:attr:`Domain.family`), of the largest size asked for so far:
entry h + j is ω_{2h}^j for j < h, for every power of two h. The stage of distance h reads h consecutive
entries, and every smaller domain finds its own stages in the same table. The inverse
transform reads the table backwards: ω^(−j) = −ω^(h−j).
"""

from __future__ import annotations

import threading
from functools import partial

import numpy as np

from gpuprover import forks
from gpuprover.cpu import ntt_lanes
from gpuprover.cpu.compiled import Kernels
from gpuprover.cpu.layout import Field
from gpuprover.cpu.path import CpuPath
from gpuprover.job import Job
from gpuprover.limbs import Words, field_to_words
from gpuprover.polynomial import Coset, Direction, Domain, Order

_kernels, _vector = Kernels("ntt"), Kernels("vector")

LOG_BLOCK = 14
"""A block of 2^14 elements and its twiddles stay in a second-level cache of 1 MiB or more."""


_tables: dict[tuple[str, int], Words] = {}
_table_lock = threading.Lock()


def twiddles(domain: Domain) -> Words:
    """The table for the domain and smaller ones: uint64[≥ max(2, size), limbs], shared, only read."""
    params, log_n = domain.field, domain.log_n
    key = params.name, domain.family
    table = _tables.get(key)
    if table is not None and len(table) >= 1 << log_n:
        return table
    with _table_lock:
        table = _tables.get(key)
        have = 0 if table is None else len(table).bit_length() - 1
        if table is None or have < log_n:
            grown = np.zeros((max(2, 1 << log_n), params.limbs), dtype=np.uint64)
            if table is not None:
                grown[: len(table)] = table
            roots = field_to_words(params, [domain.root_of_unity(s + 1) for s in range(max(1, log_n))])
            _kernels.fill_table(Field(params), grown.ctypes.data, roots.ctypes.data, have, max(1, log_n))
            _tables[key] = table = grown
    return table


@forks.in_child
def _in_child() -> None:
    global _table_lock
    _table_lock = threading.Lock()


def drop_tables() -> None:
    """Gives the twiddle tables' memory back."""
    with _table_lock:
        _tables.clear()
    ntt_lanes.drop_tables()


def coset_bytes(domain: Domain, path: CpuPath, threads: int) -> tuple[int, int]:
    """(table, working copy and buffers) in bytes that :func:`to_coset` takes beside its vector."""
    if path.transforms_in_lanes(domain):
        size = ntt_lanes.block_bytes(domain)
        return size, size + ntt_lanes.buffer_bytes(domain, threads)
    return domain.field.bytes << max(1, domain.log_n), 0


def _transform(v: Words, domain: Domain, in_time: bool, inverted: bool, job: Job) -> None:
    n, log_n = domain.size, domain.log_n
    if log_n == 0:
        return
    F, data = Field(domain.field), v.ctypes.data
    table_words = twiddles(domain)
    table = table_words.ctypes.data
    log_block = min(log_n, LOG_BLOCK)
    if job.threads > 1 and log_n > 10:
        log_block = min(log_block, log_n - (job.threads - 1).bit_length())
    size = 1 << log_block
    pieces = job.ranges(n // 2, smallest=1 << 10)

    def stage(h: int, bounds: tuple[int, int]) -> None:
        _kernels.stage(F, data, table, h, bounds[0], bounds[1], in_time, inverted)

    def long_stages() -> None:
        distances = [1 << s for s in range(log_block, log_n)]
        for h in distances if in_time else reversed(distances):
            job.map(partial(stage, h), pieces)

    def blocks() -> None:
        job.map(
            lambda i: _kernels.block(F, data, table, i * size, size, in_time, inverted, job.stop),
            range(n // size),
            brief=True,  # a block is small
        )

    for step in (blocks, long_stages) if in_time else (long_stages, blocks):
        step()


def reverse_in_place(v: Words, domain: Domain, job: Job) -> None:
    """The bit-reversal permutation."""
    F, data = Field(domain.field), v.ctypes.data
    pieces = job.ranges(domain.size, smallest=1 << 12)
    job.map(lambda r: _kernels.reverse(F, data, domain.log_n, r[0], r[1]), pieces)


def scale_in_place(v: Words, domain: Domain, factor: int, base: int, bit_reversed: bool, job: Job) -> None:
    """v[i] ← v[i]·factor·base^i, or base^rev(i) where v stands in bit-reversed order."""
    params, log_n = domain.field, domain.log_n
    F, data, p = Field(params), v.ctypes.data, domain.field.modulus
    constants = field_to_words(params, [factor, base])
    pieces = job.ranges(domain.size, smallest=1 << 10)
    if not bit_reversed:
        job.map(lambda r: _vector.scale_powers(F, data, constants.ctypes.data, r[0], r[1]), pieces)
        return
    jumps = ntt_lanes.reversed_steps(log_n)
    steps = field_to_words(params, [pow(base, jump, p) for jump in jumps] or [1])
    job.map(
        lambda r: _vector.scale_powers_reversed(
            F, data, constants.ctypes.data, steps.ctypes.data, log_n, r[0], r[1]
        ),
        pieces,
    )


def ntt(
    v: Words,
    domain: Domain,
    direction: Direction,
    order: Order,
    coset: Coset | int,
    job: Job,
    path: CpuPath,
) -> None:
    """Transforms uint64[domain.size, limbs] in place; see :meth:`gpuprover.backend.Backend.ntt`."""
    if path.transforms_in_lanes(domain):
        ntt_lanes.ntt(v, domain, direction, order, coset, job)
        return
    p = domain.field.modulus
    inverted = direction is Direction.INVERSE
    in_time = order is Order.REVERSED_TO_NATURAL
    g = domain.shift(coset)
    if not inverted and g != 1:
        scale_in_place(v, domain, 1, g, in_time, job)
    _transform(v, domain, in_time, inverted, job)
    if inverted:
        bit_reversed = not in_time
        scale_in_place(v, domain, pow(domain.size, -1, p), pow(g, -1, p), bit_reversed, job)
    if order is Order.NATURAL_TO_NATURAL:
        reverse_in_place(v, domain, job)


def to_coset(v: Words, domain: Domain, coset: Coset, job: Job, path: CpuPath) -> None:
    """Evaluations on ⟨ω⟩ -> evaluations on the coset, with one scaling pass between two transforms."""
    if coset is Coset.NONE:
        return
    if path.transforms_in_lanes(domain):
        ntt_lanes.to_coset(v, domain, job)
        return
    _transform(v, domain, in_time=False, inverted=True, job=job)
    scale_in_place(v, domain, pow(domain.size, -1, domain.field.modulus), domain.coset_generator, True, job)
    _transform(v, domain, in_time=True, inverted=False, job=job)
