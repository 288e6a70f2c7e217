"""The number-theoretic transform on a device: the passes of kernels/ntt.cu in a row, and their table.

Every pass reads and writes a vector once, in place; with at most 8 levels a pass, 2^20 takes three. What the
passes compute, and in which order twiddles stand, is at the head of kernels/ntt.cu.

=============================  ==================================  ====================================
transform of 2^log_n           passes over the vector              multiplications an element
=============================  ==================================  ====================================
NATURAL_TO_REVERSED            down                                log_n/2 − 1
NATURAL_TO_NATURAL             down, the last one into scratch     log_n/2 − 1
REVERSED_TO_NATURAL            up                                  log_n/2 − 1
to_coset                       down and up, the middle two as one  log_n − 1
=============================  ==================================  ====================================

They are products with constants (kernels/constant.cuh). A coset costs one more, which to_coset includes, and
1/n a twelfth of one. With a compact table the last LOG_COMPACT − 1 levels down, and the first ones up, take
one more for every two elements, and the coset of to_coset one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gpuprover.cuda.device import NUMBERS, Address, Allocator, At, Device, Launch, Program, launch
from gpuprover.curves import CURVES, FieldParams
from gpuprover.errors import OutOfMemory
from gpuprover.limbs import Words, field_to_words, ints_to_words
from gpuprover.polynomial import Coset, Direction, Domain, Order

DIRECTIONS = (Direction.FORWARD, Direction.INVERSE)
"""FORWARD and INVERSE of kernels/ntt.cu, by index."""
LOG_OWN = 3
"""A thread has 2^LOG_OWN elements of its tile."""
LOG_TILE = 11
"""Elements of a tile: 64 KiB of shared memory, so that two blocks of 256 threads share a multiprocessor; a
prediction until a GPU has measured it."""
LEVELS = 8
"""The most levels of a pass: tiles then are 8 columns wide, which are 256 consecutive bytes of a vector."""
FEW_LEVELS = 6
"""Two stages of three levels; passes with 7 or 8 take three. A prediction, like LEVELS."""
LEAST_LEVELS = 3
"""The fewest levels of one of several passes: a thread's elements are in one block."""
LOG_COMPACT = 4
"""A compact table has a 2^LOG_COMPACT-th of a table's entries, and 2^LOG_COMPACT more."""
LOG_LARGEST = 31
"""Positions are words of 32 bits, and so is the first one after a vector's end."""
MOST_VECTORS = 3
"""The most vectors that one launch transforms side by side."""
BLOCKS = 1 << 12
"""Blocks of launches in which a thread goes on until the work is done; a prediction."""
THREADS = 256
TABLE, OUT, VECTORS = range(NUMBERS + 1, NUMBERS + 4)
"""Regions of memory that launches work in; vectors have a region each, from VECTORS on."""


def split(log_n: int) -> tuple[int, ...]:
    """Levels of each pass, first to last on the way down.

    As few passes as there can be; FEW_LEVELS each, what is left over in the first ones.
    """
    passes = max(1, -(-log_n // LEVELS))
    if log_n < FEW_LEVELS * passes:
        return (log_n,) if passes == 1 else (*[FEW_LEVELS] * (passes - 1), log_n - FEW_LEVELS * (passes - 1))
    levels, left = [FEW_LEVELS] * passes, log_n - FEW_LEVELS * passes
    for i in range(passes):
        more = min(left, LEVELS - FEW_LEVELS)
        levels[i], left = levels[i] + more, left - more
    return tuple(levels)


@dataclass(frozen=True)
class _Table:
    """What the table of a domain holds.

    First come constants (kernels/constant.cuh) of 2·field.bytes each: W up to 2^log_w, and in a compact table
    ``multiples`` more of them, W at multiples of 2^log_w. Then elements:

    Attributes:
        roots: W at powers of two, of which all others are made.
        factors: g^(2^m) for each bit m of an index, in natural and reversed order of bits, then the same of
            1/g; none where g, as a root of twice the domain's order, is in W.
    """

    field: FieldParams
    log_w: int
    multiples: int
    roots: tuple[int, ...]
    factors: tuple[int, ...]

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, domain: Domain, compact: bool) -> _Table:
        field, log_n, g = domain.field, domain.log_n, domain.coset_generator
        p = field.modulus
        # A field's largest domain has no root of twice its order; without a coset, half of W is enough.
        log_w = log_n if log_n < field.two_adicity else log_n - 1
        roots = tuple(domain.root_of_unity(m + 2) for m in range(log_w))
        factors: tuple[int, ...] = ()
        if g * g % p != domain.omega:
            squares = [pow(g, 1 << m, p) for m in range(log_n)]
            inverses = [pow(x, -1, p) for x in squares]
            factors = (*squares, *reversed(squares), *inverses, *reversed(inverses))
        if compact and log_w > LOG_COMPACT:
            return cls(field, log_w - LOG_COMPACT, 1 << LOG_COMPACT, roots, factors)
        return cls(field, log_w, 0, roots, factors)

    def constant(self, i: int) -> int:
        """The i-th constant's distance from the start, in bytes."""
        return 2 * i * self.field.bytes

    def element(self, i: int) -> int:
        """The same of the i-th element after them; the first one is −1/p mod R, for making constants."""
        return self.constant((1 << self.log_w) + self.multiples) + i * self.field.bytes

    def factor(self, i: int) -> int:
        return self.element(1 + len(self.roots) + i)

    @property
    def bytes(self) -> int:
        return self.factor(len(self.factors))

    def elements(self) -> Words:
        R = 1 << 8 * self.field.bytes
        first = ints_to_words([-pow(self.field.modulus, -1, R) % R], self.field.limbs)
        return np.concatenate([first, field_to_words(self.field, [*self.roots, *self.factors])])


def table_bytes(domain: Domain, compact: bool = False) -> int:
    """Bytes that a :class:`Transform` allocates: twice a vector's, or an eighth of one's, and a few more."""
    return _Table.of(domain, compact).bytes


def scratch_bytes(domain: Domain) -> int:
    """Bytes beside its vector that :meth:`Transform.ntt` takes from natural to natural order."""
    return domain.size * domain.field.bytes


class Transform:
    """Transforms on one domain of one device, with their table.

    Vectors are addresses of domain.size elements, Montgomery and canonical before and after.

    Args:
        memory: where the table is allocated (:func:`table_bytes`).
        domain: over the scalar field of a curve.
        compact: a sixteenth of the table, for some more multiplications (see above).
        levels: levels of each pass, instead of those of :func:`split`.
        log_tile: see LOG_TILE; at least the levels of any pass, and LOG_OWN.

    Raises:
        OutOfMemory, DeviceError
    """

    def __init__(
        self,
        device: Device,
        memory: Allocator,
        domain: Domain,
        compact: bool = False,
        *,
        levels: Sequence[int] | None = None,
        log_tile: int = LOG_TILE,
    ) -> None:
        if domain.log_n > LOG_LARGEST:
            raise OutOfMemory(
                f"{device.name}: transforms go up to 2^{LOG_LARGEST} elements, not 2^{domain.log_n}"
            )
        (curve,) = (c for c in CURVES if c.scalar == domain.field)
        self.domain, self.compact = domain, compact
        self._device, self._memory = device, memory
        self._levels = tuple(split(domain.log_n) if levels is None else levels)
        assert sum(self._levels) == domain.log_n
        assert len(self._levels) == 1 or min(self._levels) >= LEAST_LEVELS
        self._log_tile = max(LOG_OWN + 1, min(log_tile, domain.log_n))
        assert max(self._levels) <= self._log_tile
        self._contents = _Table.of(domain, compact)
        defines = (("COMPACT", "1"),) if self._contents.multiples else ()
        self._program = Program(curve, "ntt.cu", defines)
        self._launches: dict[Hashable, list[Launch]] = {}
        self._table = memory.allocate(table_bytes(domain, compact))
        try:
            self._fill()
        except BaseException:
            self.close()
            raise

    def on(self, device: Device) -> Transform:
        """The same table for work on another main stream of the device."""
        other = copy(self)
        other._device = device
        return other

    def close(self) -> None:
        """Gives the table's memory back; no other method works afterwards."""
        self._memory.release(self._table)

    def _fill(self) -> None:
        contents = self._contents
        self._device.write(self._table + contents.element(0), contents.elements())
        first, roots = At(TABLE, contents.element(0)), At(TABLE, contents.element(1))
        made = [self._each("ntt_table", 1 << contents.log_w, roots, first, At(TABLE))]
        if contents.multiples:
            roots = At(TABLE, contents.element(1 + contents.log_w))
            at = At(TABLE, contents.constant(1 << contents.log_w))
            made.append(self._each("ntt_table", contents.multiples, roots, first, at))
        self._run(made, [])

    def _each(self, kernel: str, count: int, *arguments: int | At) -> Launch:
        """A kernel with a thread for each of ``count`` elements, or with threads that take several."""
        blocks = min(BLOCKS, -(-count // THREADS))
        return launch(self._program, kernel, blocks, THREADS, *arguments, count)

    def _run(self, launches: Sequence[Launch], vectors: Sequence[int], out: int = 0) -> None:
        self._device.run(launches, (0, self._table, out, *vectors))

    def _known(self, key: Hashable, make: Callable[[], list[Launch]]) -> list[Launch]:
        """Launches that have been made before, or are now; they depend on addresses only by regions."""
        found = self._launches.get(key)
        if found is None:
            found = self._launches[key] = make()
        return found

    # Transforms -----------------------------------------------------------------------

    def ntt(
        self,
        v: Address,
        scratch: Address | None,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset = Coset.NONE,
    ) -> Address:
        """Transforms one vector; see :meth:`gpuprover.backend.Backend.ntt`.

        ``scratch`` is memory for another vector, where the result lies after NATURAL_TO_NATURAL, and v then
        holds nothing of use; other orders leave the result in v, and need no scratch.

        Returns:
            Where the result lies: v or scratch.
        """
        if self.domain.log_n == 0:
            return v
        natural = order is Order.NATURAL_TO_NATURAL
        assert not natural or scratch is not None, "from natural to natural order a transform needs scratch"

        def make() -> list[Launch]:
            forward = direction is Direction.FORWARD
            apart = coset is not Coset.NONE and bool(self._contents.factors)
            inside = coset if not apart else Coset.NONE
            if order is Order.REVERSED_TO_NATURAL:
                made = self._up(1, direction, inside)
            else:
                made = self._down(1, direction, inside, natural=natural)
            if apart and forward:
                return [self._scale(At(VECTORS), 1, order is Order.REVERSED_TO_NATURAL), *made]
            if apart:
                at = At(OUT) if natural else At(VECTORS)
                return [*made, self._scale(at, -1, order is Order.NATURAL_TO_REVERSED)]
            return made

        self._run(self._known((direction, order, coset), make), [v], scratch or 0)
        return scratch if natural and scratch is not None else v

    def to_coset(self, vectors: Sequence[Address], coset: Coset = Coset.ODD) -> None:
        """Evaluations on ⟨ω⟩ -> evaluations of the same polynomials on the coset, in place.

        Both in natural order; see :meth:`gpuprover.backend.Backend.to_coset_in_place`. Several vectors are
        transformed side by side.
        """
        if coset is Coset.NONE or self.domain.log_n == 0:
            return
        for i in range(0, len(vectors), MOST_VECTORS):
            some = vectors[i : i + MOST_VECTORS]
            count = len(some)
            self._run(self._known(count, lambda count=count: self._to_coset(count)), some)  # type: ignore[misc]

    def _to_coset(self, count: int) -> list[Launch]:
        if self._contents.factors:
            return [
                *self._down(count, Direction.INVERSE, Coset.NONE),
                *(self._scale(At(VECTORS + k), 1, True) for k in range(count)),
                *self._up(count, Direction.FORWARD, Coset.NONE),
            ]
        last = len(self._levels) - 1
        return [
            *self._down(count, Direction.INVERSE, Coset.NONE, range(last)),
            self._pass("ntt_middle", count, [], [self._levels[last]]),
            *self._up(count, Direction.FORWARD, Coset.NONE, range(last)),
        ]

    def _down(
        self,
        count: int,
        direction: Direction,
        coset: Coset,
        passes: range | None = None,
        natural: bool = False,
    ) -> list[Launch]:
        """From natural to reversed order; with ``natural`` the last pass goes to OUT, in natural order."""
        last = len(self._levels) - 1
        return [
            self._pass(
                "ntt_down", count, [At(OUT) if natural and i == last else 0], self._place(i, direction, coset)
            )
            for i in (passes if passes is not None else range(last + 1))
        ]

    def _up(
        self,
        count: int,
        direction: Direction,
        coset: Coset,
        passes: range | None = None,
    ) -> list[Launch]:
        """From reversed to natural order; passes are counted as on the way down."""
        return [
            self._pass("ntt_up", count, [], self._place(i, direction, coset))
            for i in reversed(passes if passes is not None else range(len(self._levels)))
        ]

    def _place(self, i: int, direction: Direction, coset: Coset) -> list[int]:
        """Pass i of a transform, in the words of kernels/ntt.cu."""
        done = sum(self._levels[:i])
        return [done, self._levels[i], DIRECTIONS.index(direction), int(coset is not Coset.NONE)]

    def _pass(self, kernel: str, count: int, out: list[int | At], place: list[int]) -> Launch:
        """Over so many vectors side by side."""
        size = 1 << self._log_tile
        blocks = count << (self.domain.log_n - self._log_tile if self.domain.size > size else 0)
        vectors = [At(VECTORS + (k if k < count else 0)) for k in range(MOST_VECTORS)]
        table = At(TABLE), self._contents.log_w, self.domain.log_n
        given = *vectors, *out, *table, *place
        shared = (2 * size + 4) * 16
        return launch(self._program, kernel, blocks, size >> LOG_OWN, *given, shared=shared)

    def _scale(self, v: At, sign: int, in_reverse: bool) -> Launch:
        """v[i] ← v[i]·g^(sign·i), i being the coefficient's index, where g is not in the table."""
        which = (0 if sign > 0 else 2) + in_reverse
        factors = At(TABLE, self._contents.factor(which * self.domain.log_n))
        return self._each("ntt_scale", self.domain.size, v, factors)
