"""The sums of one call on their streams: which sort serves which bases, what runs beside what.

The main stream has the sorts and the sums in G1; a proof's sums in G2 have another. Where there is memory for
it, the sorts of all requests but the first run beside the first one's sums, and the reduction of each sum
beside the next ones. Bases that do not stay on the device are sent slice by slice, once for all that share
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

from gpuprover.backend import Form
from gpuprover.cuda.device import MAIN, Address, Stream
from gpuprover.cuda.handles import DeviceBases
from gpuprover.cuda.msm import Bases, Digits, Msm, Sum
from gpuprover.cuda.msm_plan import MsmPlan, point_bytes
from gpuprover.cuda.residency import Session
from gpuprover.curves import Group
from gpuprover.limbs import Words, address


class Done(NamedTuple):
    """A sum that is known already."""

    point: Words


class Scalars(NamedTuple):
    """Scalars on the device.

    Attributes:
        at, form, words: as :meth:`Msm.digits` takes them.
        n: their number.
    """

    at: Address
    n: int
    form: Form
    words: int


@dataclass
class _Part:
    """Sums of the same scalars over bases of one plan, which all lie on the device, or are all sent there.

    Attributes:
        bases: index in the request -> the bases, at least as many as scalars.
        digits: the digits of all scalars, where they have been made already.
    """

    plan: MsmPlan
    bases: dict[int, DeviceBases]
    scalars: Scalars
    digits: Digits | None = None

    @property
    def n(self) -> int:
        """The number of scalars."""
        return self.scalars.n

    def sort(self, msm: Msm, lo: int, count: int, stream: Stream = MAIN) -> Digits:
        """The digits of ``count`` scalars from ``lo`` on."""
        at, _, form, words = self.scalars
        return msm.digits(self.plan, at + 8 * words * lo, count, form, words, stream, self.points(count))

    def points(self, count: int) -> int:
        """The bases of so many scalars: those of a table, or as many."""
        return count if self.plan.depth == 1 else len(next(iter(self.bases.values())))


def _of_the_same_points(parts: Sequence[tuple[int, _Part]]) -> list[list[tuple[int, _Part]]]:
    """Parts whose bases can be sent once for all of them."""
    alike: dict[tuple[Any, ...], list[tuple[int, _Part]]] = {}
    for i, part in parts:
        places = tuple(address(b.points) for b in part.bases.values() if b.points is not None)
        alike.setdefault((part.plan, places, *part.scalars[2:]), []).append((i, part))
    return list(alike.values())


@dataclass
class _Lanes:
    """Streams for the sums of one call.

    Attributes:
        beside: whether sorts and reductions are not on the main one.
        side: the stream of sums in G2.
    """

    beside: bool = False
    side: Stream = MAIN
    sorts: Stream = MAIN
    reductions: Sequence[Stream] = ()
    used: int = 0

    def reduction(self) -> Stream:
        """The stream for a reduction; they take turns."""
        self.used += 1
        return self.reductions[self.used % len(self.reductions)]


class Sums:
    """The sums of one call.

    Args:
        msm: makes each.
        session: the proof's; None outside of one, where all run one after another.
        copies: lends a stream for bases that are sent.
    """

    def __init__(
        self, msm: Msm, session: Session | None, copies: Callable[[], AbstractContextManager[Stream]]
    ) -> None:
        self._msm, self._session, self._copies = msm, session, copies
        self._started: dict[tuple[int, int], list[Sum] | Done] = {}

    def start(self, requests: Sequence[tuple[Sequence[DeviceBases], Scalars | None]]) -> None:
        """Launches the sums of all requests over bases that have a plan; scalars are None for no such.

        Memory that the main stream alone works with may be taken again by its later work, and by other
        streams, which wait for it each time (:class:`Msm`). What others work with is held to the end.
        """
        here: list[tuple[int, _Part]] = []
        sent: list[tuple[int, _Part]] = []
        for i, (bases, scalars) in enumerate(requests):
            if scalars is None:
                continue
            # Tables of one plan are as long as each other.
            alike: dict[tuple[MsmPlan, bool], dict[int, DeviceBases]] = {}
            for j, b in enumerate(bases):
                if b.plan is not None:
                    alike.setdefault((b.plan, b.points is not None), {})[j] = b
            for (plan, elsewhere), mine in alike.items():
                (sent if elsewhere else here).append((i, _Part(plan, mine, scalars)))
        lanes = self._lanes([part for _, part in here])
        if lanes.beside:
            # Nothing runs beside the first sort, and the others beside sums.
            for k, (_, part) in enumerate(here):
                part.digits = part.sort(self._msm, 0, part.n, lanes.sorts if k else MAIN)
        for i, part in here:
            for j, pieces in self._start_part(part, lanes).items():
                self._started[i, j] = pieces
        for together in _of_the_same_points(sent):
            first = together[0][1]
            points = [(b.group, b.points) for b in first.bases.values() if b.points is not None]
            scalars_of = [(part.scalars.at, part.n) for _, part in together]
            _, _, form, words = first.scalars
            with self._copies() as copies:
                found = self._msm.sum_slices(first.plan, points, scalars_of, copies, form, words)
            for (i, part), sums in zip(together, found, strict=True):
                for j, point in zip(part.bases, sums, strict=True):
                    self._started[i, j] = Done(point)

    def finish(self) -> dict[tuple[int, int], Words]:
        """(index of the request, index of its bases) -> the sum, an affine point."""
        points = {place: s.point for place, s in self._started.items() if isinstance(s, Done)}
        pending = {place: s for place, s in self._started.items() if not isinstance(s, Done)}
        if pending:
            points.update(zip(pending, self._msm.finish(*pending.values()), strict=True))
        return points

    def _lanes(self, parts: Sequence[_Part]) -> _Lanes:
        """Streams for the sums of a proof, if one piece of each is all; others come one after another."""
        session = self._session
        if session is None or any(part.n > part.plan.n for part in parts):
            return _Lanes()
        _, side, sorts, *reductions = session.streams
        return _Lanes(session.layout.beside, side, sorts, reductions)

    def _start_part(self, part: _Part, lanes: _Lanes) -> dict[int, list[Sum]]:
        """Sums over bases of one plan that lie on the device, ``plan.n`` points at a time."""
        plan = part.plan
        started: dict[int, list[Sum]] = {j: [] for j in part.bases}
        for lo in range(0, part.n, plan.n):
            count = min(plan.n, part.n - lo)
            digits = part.digits or part.sort(self._msm, lo, count)
            # The longest first.
            for j, b in sorted(part.bases.items(), key=lambda item: item[1].group is Group.G1):
                at = Address(b.at + lo * point_bytes(self._msm.curve, b.group))
                stream = lanes.side if b.group is Group.G2 else MAIN
                reductions = lanes.reduction() if stream == MAIN and lanes.beside else None
                bases = Bases(plan, b.group, part.points(count), at)
                started[j].append(self._msm.sum(bases, digits, stream, reductions))
            if all(s[-1].stream == MAIN for s in started.values()):
                self._msm.release(digits)
        return started
