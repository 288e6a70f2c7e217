"""Multiples of a key's points, kept while the key lives: they pay for small circuits that are proved often.

With 2^(bj)·P beside P for j < 4, a scalar of 4b bits is four scalars of b bits, and a multi-scalar
multiplication has as many entries as before in a quarter of the windows: a quarter of the bucket sums,
which are most of the work where points are few (rows ``msm G1, multiples`` and ``groth16 prove,
multiples`` of bench/results/windows.jsonl). From 2^16 points on nothing is left of that.

To make the multiples costs as much as some tens of proofs gain from them. So a key's first :data:`FREE`
proofs are made without: who proves less often pays nothing, who proves more often at most twice the least.
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

PARTS = 4
"""Parts that a scalar is cut into, and multiples of a point: 2 gain half as much, 8 gain nothing over 4."""
LARGEST = 1 << 14
"""Points up to which multiples pay."""
FREE = 64
"""Proofs of a key before its multiples are made."""

Multiply = Callable[[Group, Words], Words]
"""Points uint64[n, words] -> uint64[PARTS·n, words]: each with its multiples behind it."""


@dataclass
class Kept:
    """What is kept of one key.

    Attributes:
        proofs: how many were made.
        tables: (group, address, points) of a section of the key -> its points with their multiples.
    """

    proofs: int = 0
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


def kept_for(owner: object) -> Kept:
    """The record of a key, counting this proof; gone when the key is."""
    with _guard:
        kept = _kept.get(id(owner))
        if kept is None:
            # First what forgets it: a process forked between the two would keep it for another key.
            weakref.finalize(owner, _kept.pop, id(owner), None)
            kept = _kept[id(owner)] = Kept()
        kept.proofs += 1
        return kept


@forks.in_child
def _in_child() -> None:
    global _guard
    _guard = threading.Lock()
    for kept in _kept.values():
        kept.lock = threading.Lock()


def in_parts(scalars: Words) -> Words:
    """Canonical uint64[n, limbs] -> uint64[PARTS·n, limbs // PARTS + 1], the lowest part first.

    The limb on top is 0: digits with signs may carry into it.
    """
    n, limbs = scalars.shape
    parts = np.zeros((PARTS * n, limbs // PARTS + 1), dtype=np.uint64)
    parts[:, :-1] = scalars.reshape(PARTS * n, limbs // PARTS)
    return parts
