"""Multiples of a key's points, kept while the key lives: they pay for small circuits that are proved often.

With 2^(bj)·P beside P for j < m, a scalar of m·b bits is m scalars of b bits, and a multi-scalar
multiplication has as many entries as before in an m-th of the windows: an m-th of the bucket sums and of the
inversions, which are most of the work where points are few (rows ``msm G1, multiples`` and ``groth16 prove,
multiples`` of bench/results/windows.jsonl). From 2^16 points on nothing is left of that.

To make the multiples costs as much as some tens of sums gain from them, less where points are few. So the
first sums over a key's points, :func:`free` of them, are made without: who proves less often pays nothing,
who proves more often at most twice the least.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from gpuprover import forks
from gpuprover.curves import Group
from gpuprover.limbs import Words, address

PARTS = ((1 << 7, 32), (1 << 10, 16), (1 << 12, 8))
"""Points up to which a scalar is cut into so many parts, and as many multiples of a point are kept."""
FEWEST = 4
"""Parts for more points: 2 gain half as much, 8 gain nothing over 4."""
LARGEST = 1 << 14
"""Points up to which multiples pay."""
FREE = 64
"""The most sums over points before their multiples are made."""
_POINTS_A_SUM = 128
"""Points whose multiples cost what a sum over all of them gains."""

Multiply = Callable[[Group, Words], Words]
"""Points uint64[n, words] -> uint64[m·n, words]: each with its multiples behind it."""


def parts(n: int) -> int:
    """How many multiples are kept of each of n points: m."""
    return next((m for most, m in PARTS if n <= most), FEWEST)


def free(n: int) -> int:
    """Sums over n points before their multiples are made."""
    return min(FREE, 1 + n // _POINTS_A_SUM)


@dataclass
class Kept:
    """What is kept of one key.

    Attributes:
        sums: how many were made over each of its sets of points.
        tables: (group, address, points) of a section of the key -> its points with their multiples.
    """

    sums: int = 0
    tables: dict[tuple[Group, int, int], Words] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def table(self, group: Group, points: Words, multiply: Multiply) -> Words:
        """The points with their multiples; made once, however many threads ask."""
        name = group, address(points), len(points)
        with self.lock:
            if name not in self.tables:
                self.tables[name] = multiply(group, points)
            return self.tables[name]


_kept: dict[int, Kept] = {}
_guard = threading.Lock()


def kept_for(owner: object, sums: int = 1) -> Kept:
    """The record of a key, or of points that keys share, counting so many sums; gone with the owner."""
    with _guard:
        kept = _kept.get(id(owner))
        if kept is None:
            # First what forgets it: a process forked between the two would keep it for another key.
            weakref.finalize(owner, _kept.pop, id(owner), None)
            kept = _kept[id(owner)] = Kept()
        kept.sums += sums
        return kept


@forks.in_child
def _in_child() -> None:
    global _guard
    _guard = threading.Lock()
    for kept in _kept.values():
        kept.lock = threading.Lock()


def in_parts(scalars: Words, count: int) -> Words:
    """Canonical uint64[n, limbs] -> uint64[count·n, words], the lowest part first.

    Parts of whole words have one more on top, which is 0: digits with signs may carry into it.
    """
    n, limbs = scalars.shape
    if limbs >= count:
        parts = np.zeros((count * n, limbs // count + 1), dtype=np.uint64)
        parts[:, :-1] = scalars.reshape(count * n, limbs // count)
        return parts
    size = 8 * limbs // count
    pieces = np.ascontiguousarray(scalars, dtype="<u8").view(f"<u{size}")
    return pieces.reshape(count * n, 1).astype(np.uint64)
