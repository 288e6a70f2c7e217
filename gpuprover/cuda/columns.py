"""Columns and polynomials on a device: the launches of kernels/columns.cu.

What they compute is at the head of each part of that file. Vectors are an address and a length, Montgomery
and canonical; those that are written are there already, and are none of those that are read. Small tables
that a launch needs (programs, descriptions of vectors, powers) are written to scratch memory before it.

==================  ==========================================  =====================================
operation           passes over memory                          multiplications an element
==================  ==========================================  =====================================
evaluate            every read and every result once, if the    those of the formula
                    caches hold what is read twice
combine             every term once, the result once            one a term
values              the vectors once                            one, and a power of the thread's place
divide              twice, the result once                      two, and some ten a thread
running_product     twice, the result once                      two, and some ten a thread
combine_signals     every record and its elements once          two
==================  ==========================================  =====================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct, pack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpuprover.columns import Formula
from gpuprover.cuda.device import Address, Allocator, Device, Program
from gpuprover.curves import CurveParams, FieldParams
from gpuprover.limbs import Words, address, words_to_field

QUAD = 16
"""Bytes to which the tables of a launch are aligned."""
COUNTER, FLAG = 4, 2
"""Bytes of a counter, and of a flag."""


@dataclass(frozen=True)
class Tuning:
    """How launches are cut; all predictions until a GPU has measured them.

    Attributes:
        threads: threads of a block, a power of two.
        registers: bytes of shared memory that the registers of a block's threads may take: three such blocks
            share a multiprocessor of an H200. A block has fewer threads where more registers ask for it.
        narrow: the fewest threads of such a block; with yet more registers they lie in global memory.
        large_blocks: blocks for each multiprocessor in that case.
        value_blocks: blocks for each polynomial that is evaluated, at most; a power of two.
        value_share: coefficients of a thread of these, before there are more blocks.
        power_share: powers of a thread; the first one takes it some 40 products.
        scan_share: elements of a thread of a scan.
        wide: chains from which on a thread takes a whole one.
    """

    threads: int = 256
    registers: int = 72 << 10
    narrow: int = 32
    large_blocks: int = 4
    value_blocks: int = 256
    value_share: int = 8
    power_share: int = 16
    scan_share: int = 8
    wide: int = 1 << 14


TUNING = Tuning()


class Span(NamedTuple):
    """A vector on the device, or a part of one."""

    at: Address
    length: int


class Shifted(NamedTuple):
    """scalar·X^shift·(the polynomial v): see :class:`gpuprover.backend.Term`."""

    v: Span
    scalar: int
    shift: int


class Places(NamedTuple):
    """Where in a record of ``stride`` bytes indices x and y (u32) and factors a and b (u64[limbs]) are."""

    stride: int
    x: int
    y: int
    a: int
    b: int


@lru_cache(maxsize=64)
def _squares(field: FieldParams, x: int, count: int) -> bytes:
    """:func:`squares` as the kernels take them; transforms of many vectors use the same."""
    return _elements(field, squares(x, count, field.modulus))


def _elements(field: FieldParams, values: Iterable[int]) -> bytes:
    """Integers of any size and sign as elements of a vector; of a few this takes less time than arrays."""
    r, p, size = field.R, field.modulus, field.bytes
    return b"".join([(x * r % p).to_bytes(size, "little") for x in values])


def squares(x: int, count: int, modulus: int) -> list[int]:
    """x^(2^m) for m below ``count``."""
    found = [x % modulus]
    for _ in range(count - 1):
        found.append(found[-1] ** 2 % modulus)
    return found[:count]


class Columns:
    """Operations of one device, on its main stream.

    Args:
        check: called before every launch; an exception of its ends the operation.
        memory: where scratch comes from. What is not given back at an exception is the caller's to release,
            as :class:`gpuprover.cuda.allocation.Scope` does.
    """

    def __init__(
        self,
        device: Device,
        curve: CurveParams,
        check: Callable[[], None],
        memory: Allocator,
        tuning: Tuning = TUNING,
    ) -> None:
        self._device, self._field, self._check, self._memory = device, curve.scalar, check, memory
        self._tuning = tuning
        self._program = Program(curve, "columns.cu")
        self._element = curve.scalar.bytes

    # Formulas ------------------------------------------------------------------------

    def evaluate(
        self,
        formula: Formula,
        columns: Mapping[str, Span],
        challenges: Mapping[str, int],
        step: int,
        rows: int,
        outs: Sequence[Address],
    ) -> None:
        """outs[k] ← result k on all ``rows``, below 2^31; see :meth:`gpuprover.backend.Backend.evaluate`."""
        scalars = formula.scalar_values(challenges, self._field.modulus)
        if not rows:
            return
        instructions, registers = _machine_code(formula)
        reads = []
        for name, rotation in formula.reads:
            at, length = columns[name]
            reads.append(_READ.pack(at, length, rotation * step % length))
        tables = self._send(instructions, b"".join(reads), self._words(scalars), _addresses(outs))
        counts = len(instructions) // INSTRUCTION, len(reads), len(scalars), rows
        assert rows < 1 << 31
        size, t, device = registers * self._element, self._tuning, self._device.properties
        threads, limit = t.threads, min(t.registers, device.shared)
        while threads > t.narrow and threads * size > limit:
            threads //= 2
        if threads * size <= limit:
            blocks = -(-rows // threads)
            self._launch("evaluate", blocks, threads, *tables.at, *counts, shared=threads * size)
        else:
            threads = t.threads
            blocks = min(-(-rows // threads), t.large_blocks * device.multiprocessors)
            file = self._memory.allocate(blocks * threads * size)
            self._launch("evaluate_large", blocks, threads, *tables.at, *counts, file)
            self._memory.release(file)
        self._memory.release(tables.start)

    # Sums and places -----------------------------------------------------------------

    def combine(self, terms: Sequence[Shifted], out: Span) -> None:
        """out ← Σ scalar·X^shift·v, as many coefficients as it has."""
        described = _described((v.at, v.length, shift) for v, _, shift in terms)
        tables = self._send(described, self._words([scalar for _, scalar, _ in terms]))
        self._each("combine", out.length, *tables.at, len(terms), out.at, out.length)
        self._memory.release(tables.start)

    def powers(self, base: int, factor: int, out: Span) -> None:
        """out[i] ← factor·base^i."""
        share = self._tuning.power_share
        tables = self._send(self._words([factor]), self._squares_for(out.length, base))
        self._each("powers", out.length, out.at, tables.start, out.length, share=share)
        self._memory.release(tables.start)

    def fold_onto_coset(self, v: Span, g: int, out: Span) -> None:
        """out[i] ← Σ v[i + j·n]·g^(i + j·n), of n elements, a power of two: see the kernel."""
        tables, log_n = self._send(self._squares_for(out.length, g)), out.length.bit_length() - 1
        share = self._tuning.power_share
        self._each("fold_onto_coset", out.length, *v, *tables.at, log_n, out.at, share=share)
        self._memory.release(tables.start)

    def scale_reversed(self, v: Span, base: int) -> None:
        """v[i] ← v[i]·base^k with k the bits of i in reverse, of a vector of a power of two elements."""
        powers = squares(base, (v.length - 1).bit_length(), self._field.modulus)
        tables = self._send(self._words(powers[::-1]))
        self._each("scale_by_bits", v.length, v.at, *tables.at, v.length)
        self._memory.release(tables.start)

    def gather(self, v: Span, indices: NDArray[np.uint32], out: Address) -> int:
        """out[i] ← v[indices[i]] -> how many indices are not below v's length; these give 0.

        Indices are C-contiguous.
        """
        if not len(indices):
            return 0
        at, outside = self._memory.allocate(indices.nbytes), self._memory.allocate(COUNTER)
        self._device.write(at, indices)
        self._device.fill(outside, 0, COUNTER)
        self._each("gather", len(indices), *v, at, out, len(indices), outside)
        return self._counted(outside, at)

    def combine_signals(
        self, values: Address, known: int, records: NDArray[np.uint8], places: Places, count: int
    ) -> bool:
        """values[known + i] ← a·values[x] + b·values[y] by record i -> whether all could be made.

        Records are sent as they are. A combination of combinations comes a pass after them, and there are
        passes for sums that are balanced trees. What needs more, or has an index that is not of an element
        before its own, is left with arbitrary values.
        """
        at, missing = self._memory.allocate(records.nbytes), self._memory.allocate(COUNTER)
        made, made_now = (self._memory.allocate(FLAG * count) for _ in range(2))
        self._device.write(at, records)
        self._device.fill(missing, 0, COUNTER)
        self._device.fill(made, 0, FLAG * count)
        passes = count.bit_length() + 1
        for k in range(passes):
            counted = missing if k == passes - 1 else 0
            self._each("combine_signals", count, values, known, at, *places, count, made, made_now, counted)
            made, made_now = made_now, made
        return self._counted(missing, made, made_now, at) == 0

    def _counted(self, counter: Address, *others: Address) -> int:
        """What a counter holds, once the launches are done; gives it back, and the others."""
        found = np.zeros(1, np.uint32)
        self._device.read(found, counter)
        for place in (counter, *others):
            self._memory.release(place)
        return int(found[0])

    def interleave(self, vectors: Sequence[Span], out: Span) -> None:
        """out[i·k + j] ← vectors[j][i] for k vectors, and 0 behind the end of one."""
        tables = self._send(_described((at, length, 0) for at, length in vectors))
        self._each("interleave", out.length, *tables.at, len(vectors), out.at, out.length)
        self._memory.release(tables.start)

    def deinterleave(self, v: Span, outs: Sequence[Address]) -> None:
        """outs[j][i] ← v[i·k + j] for k outs, whose number divides v's length."""
        tables = self._send(_addresses(outs))
        self._each("deinterleave", v.length, v.at, *tables.at, len(outs), v.length)
        self._memory.release(tables.start)

    # Values at points ----------------------------------------------------------------

    def values(self, queries: Sequence[tuple[Span, int]]) -> list[int]:
        """v(x) of each vector v and integer x in [0, r) -> integers in [0, r); waits for them."""
        if not queries:
            return []
        t = self._tuning
        longest = max(v.length for v, _ in queries)
        wanted = -(-longest // (t.threads * t.value_share))
        log_blocks = min(t.value_blocks, 1 << max(0, wanted - 1).bit_length()).bit_length() - 1
        log_threads = t.threads.bit_length() - 1
        bits = log_threads + log_blocks + 1
        described = _described((v.at, v.length, 0) for v, _ in queries)
        powers = b"".join([_squares(self._field, x, bits) for _, x in queries])
        tables = self._send(described, powers)
        partials = self._memory.allocate((len(queries) << log_blocks) * self._element)
        out = self._memory.allocate(len(queries) * self._element)
        self._launch(
            "values_by_blocks", len(queries) << log_blocks, t.threads, *tables.at, bits, log_blocks, partials,
            shared=t.threads * self._element,
        )  # fmt: skip
        self._launch(
            "values_of_blocks", len(queries), 1 << log_blocks, partials, tables.at[1], bits, log_threads, out,
            shared=self._element << log_blocks,
        )  # fmt: skip
        found = np.empty((len(queries), self._field.limbs), np.uint64)
        self._device.read(found, out)
        for place in (tables.start, partials, out):
            self._memory.release(place)
        return words_to_field(self._field, found)

    # Scans ---------------------------------------------------------------------------

    def divide(self, v: Span, root: int, degree: int, quotient: Address, remainder: Address) -> None:
        """v = quotient·(X^degree − root) + remainder, of v.length − degree and ``degree`` coefficients.

        v has at least ``degree`` of them. The results may take its place: the remainder at v, the quotient
        ``degree`` elements on.
        """
        t, p = self._tuning, self._field.modulus
        columns = min(degree, t.threads)
        groups = t.threads // columns
        rows = -(-v.length // degree)
        share = rows if degree >= t.wide else min(rows, t.scan_share)
        tiles = -(-rows // (groups * share))
        joins = [pow(root, share << s, p) for s in range(groups.bit_length())]
        tables = self._send(self._words([root, *joins]))
        blocks, threads = tiles * -(-degree // columns), groups * columns
        arguments = *v, degree, share, columns, *tables.at
        carries, shared = Address(0), threads * self._element
        if tiles > 1:
            carries = self._memory.allocate(tiles * degree * self._element)
            self._launch("division_totals", blocks, threads, *arguments, carries, shared=shared)
            above = Address(carries + degree * self._element)
            self.divide(Span(carries, tiles * degree), pow(root, groups * share, p), degree, above, carries)
        self._launch(
            "division_results", blocks, threads, *arguments, carries, remainder, quotient, shared=shared
        )
        if tiles > 1:
            self._memory.release(carries)
        self._memory.release(tables.start)

    def running_product(self, v: Span, start: int, out: Address) -> None:
        """out[i] ← start·v[0]·…·v[i]; out may be v."""
        if not v.length:
            return
        tables = self._send(self._words([start]))
        self._products(v, tables.start, out)
        self._memory.release(tables.start)

    def _products(self, v: Span, start: Address, out: Address) -> None:
        t = self._tuning
        share = min(t.scan_share, v.length)
        tiles = -(-v.length // (t.threads * share))
        carries, shared = Address(0), t.threads * self._element
        if tiles > 1:
            carries = self._memory.allocate(tiles * self._element)
            self._launch("product_totals", tiles, t.threads, *v, share, carries, shared=shared)
            self._products(Span(carries, tiles), start, carries)
        self._launch("product_results", tiles, t.threads, *v, share, start, carries, out, shared=shared)
        if tiles > 1:
            self._memory.release(carries)

    # Launches ------------------------------------------------------------------------

    def _words(self, values: Sequence[int]) -> bytes:
        return _elements(self._field, values)

    def _squares_for(self, n: int, base: int) -> bytes:
        """base^(2^m) for the bits of n, and of the number of threads with ``power_share`` elements each."""
        t = self._tuning
        threads = -(-n // (t.threads * t.power_share)) * t.threads
        return _squares(self._field, base, max(n, threads).bit_length())

    def _send(self, *tables: bytes) -> _Tables:
        """Tables side by side in scratch memory, in one copy."""
        parts, starts, size = list[bytes](), list[int](), 0
        for table in tables:
            rest = -len(table) % QUAD
            starts.append(size)
            parts += table, bytes(rest)
            size += len(table) + rest
        data = np.frombuffer(b"".join(parts) or bytes(QUAD), np.uint8)
        at = self._memory.allocate(len(data))
        self._device.write(at, data)
        return _Tables(at, [Address(at + start) for start in starts])

    def _each(self, kernel: str, count: int, *arguments: int, share: int = 1) -> None:
        """A kernel over ``count`` elements, of which a thread takes about ``share``."""
        threads = self._tuning.threads
        if count:
            self._launch(kernel, -(-count // (threads * share)), threads, *arguments)

    def _launch(self, kernel: str, blocks: int, threads: int, *arguments: int, shared: int = 0) -> None:
        self._check()
        self._device.launch(self._program, kernel, blocks, threads, *arguments, shared=shared)


class _Tables(NamedTuple):
    start: Address
    at: list[Address]


_READ, _TERM, INSTRUCTION = Struct("<QII"), Struct("<Qqqq"), 16
"""Read and Term of kernels/columns.cu; bytes of an Instruction."""


def _described(vectors: Iterable[tuple[int, int, int]]) -> bytes:
    """(address, length, shift) of vectors as an array of Term."""
    return b"".join([_TERM.pack(*v, 0) for v in vectors])


def _addresses(places: Sequence[int]) -> bytes:
    return pack(f"<{len(places)}Q", *places)


@lru_cache(maxsize=64)
def _machine_code(formula: Formula) -> tuple[bytes, int]:
    """The formula's program as an array of Instruction of kernels/columns.cu, and its number of registers."""
    program = formula.program
    return np.array(program.instructions, "<u4").tobytes(), program.registers


def records_of(
    left: NDArray[np.uint32], right: NDArray[np.uint32], left_factors: Words, right_factors: Words
) -> tuple[NDArray[np.uint8], Places]:
    """Records for :meth:`Columns.combine_signals`, as bytes, and where their parts are.

    A view if the parts come from one array of records.
    """
    parts: tuple[NDArray[Any], ...] = left, right, left_factors, right_factors
    count, stride = len(left), left.strides[0]
    first = min(parts, key=address)
    x, y, a, b = (address(part) - address(first) for part in parts)
    end = max(x + 4, y + 4, a + left_factors[0].nbytes, b + right_factors[0].nbytes)
    together = all(part.strides[0] == stride for part in parts) and end <= stride
    units, rest = divmod((count - 1) * stride + end, first.dtype.itemsize)
    aligned_parts = not (x % 4 or y % 4 or a % 8 or b % 8 or rest)
    if together and aligned_parts and left_factors.strides[1:] == right_factors.strides[1:] == (8,):
        begin = first[:1].reshape(-1)[:1]
        whole = np.lib.stride_tricks.as_strided(begin, (units,), begin.strides, writeable=False)
        return whole.view(np.uint8), Places(stride, x, y, a, b)
    limbs = left_factors.shape[1]
    rows = np.empty(count, [("x", "<u4"), ("y", "<u4"), ("a", "<u8", limbs), ("b", "<u8", limbs)])
    for name, part in zip("xyab", parts, strict=True):
        rows[name] = part
    return rows.view(np.uint8), Places(rows.itemsize, 0, 4, 8, 8 + 8 * limbs)
