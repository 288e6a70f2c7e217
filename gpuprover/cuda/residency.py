"""What proofs on one GPU share, and where everything of a proof lies.

A :class:`Layout` says for each part of a key whether it stays on the device, and how. :func:`layouts` lists
them from the best to the leanest, in the order in which a proof gives things up:

1. memory of their own for the sums, in which they are sorted and reduced beside each other, if that leaves
   room for tables; and only in memory that nobody holds;
2. tables of multiples of the bases, which are made only for a key that comes again, and only in memory that
   nobody holds, either; and, without them, the former again;
3. sums over all points at once: they are taken a half, then a quarter at a time;
4. the bases themselves, the shortest first: they are sent anew for every proof, in slices;
5. the matrices and columns, likewise;
6. the transforms' tables, for compact ones;
7. the length of slices.

A proof takes the first that fits beside what other proofs use; what merely lies there, of other keys, gives
way. Bases that several keys share, by their name in the demand, lie there once and are no key's: they stay
until memory is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product

from gpuprover.cuda import sparse
from gpuprover.cuda.allocation import Arena, Pool, Resident, Residents, aligned, needs
from gpuprover.cuda.device import Device, Properties, Stream
from gpuprover.cuda.msm_plan import MsmPlan, choose_plan, point_bytes
from gpuprover.cuda.ntt import table_bytes as twiddle_bytes
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import Demand, named
from gpuprover.errors import DeviceError, OutOfMemory
from gpuprover.polynomial import Domain

SHORTEST_SLICE = 1 << 14
"""Entries or points below which slices are not cut any further; other things take more memory then."""
MOST_HALVINGS = 6
"""The most halvings of the points of a sum that are taken at a time: each slice has buckets to add up."""
SHORTEST_TABLE = 1 << 10
"""Bases that get no table if they are fewer: launches take longer than what it saves. A prediction."""
UNBOUNDED = 1 << 62
STREAMS = 7
"""A proof's streams: its main one, one for sums in G2, one for sorts, and as its reductions in G1, four of
them, may all run at once, as many for these."""
SETTLED_SECONDS = 10.0
"""A key whose layout has been chosen keeps it for so long, whatever memory becomes free meanwhile."""


@dataclass(frozen=True)
class RowsPart:
    """One set of bases.

    Attributes:
        name: their name in the demand.
        plan: the plan that their multiples are for; None where there are none, and any plan without serves.
        shared: what all keys that have them call them; empty for those of one key.
    """

    name: str
    group: Group
    n: int
    plan: MsmPlan | None
    shared: str = ""


@dataclass(frozen=True)
class MatricesPart:
    """Matrices of a key: entries in slices of ``size``, all of them on the device or one at a time."""

    name: str
    count: int
    rows: int
    entries: int
    size: int
    resident: bool = True


@dataclass(frozen=True)
class ColumnPart:
    """A vector of a key, which lies on the device, or is sent."""

    name: str
    n: int
    resident: bool = True


@dataclass(frozen=True)
class TwiddlesPart:
    """Tables of the transforms on a domain."""

    domain: Domain
    compact: bool = False


@dataclass(frozen=True)
class ArenaPart:
    """The memory of an arena: kept for the next proof, as to allocate it takes the device a while."""

    size: int


Part = RowsPart | MatricesPart | ColumnPart | TwiddlesPart | ArenaPart


@dataclass(frozen=True)
class SumsPlan:
    """Sums of the same scalars with several sets of bases.

    Attributes:
        names: the sets' names in the demand.
        plan: the plan of the sums, which take ``plan.n`` points at a time.
        shared: for each set, what all keys that have it call it; empty for those of one key.
        resident: whether the bases lie on the device; else they are sent.
    """

    names: tuple[str, ...]
    n: int
    plan: MsmPlan
    shared: tuple[str, ...]
    resident: bool = True

    @cached_property
    def rows(self) -> tuple[RowsPart, ...]:
        """Its bases."""
        kept = self.plan if self.plan.depth > 1 else None
        return tuple(
            RowsPart(name, group, self.n, kept, shared)
            for name, group, shared in zip(self.names, self.plan.groups, self.shared, strict=True)
        )


@dataclass(frozen=True)
class Layout:
    """Where the parts of a key lie during a proof.

    Attributes:
        beside: whether sums over all points at once are sorted and reduced on streams of their own, in memory
            that is held until all are known.
    """

    curve: CurveParams
    sums: tuple[SumsPlan, ...]
    matrices: tuple[MatricesPart, ...]
    columns: tuple[ColumnPart, ...]
    twiddles: tuple[TwiddlesPart, ...]
    beside: bool = True

    @cached_property
    def rows(self) -> dict[str, tuple[SumsPlan, RowsPart]]:
        """The sums and the part of the bases of each name."""
        return {part.name: (sums, part) for sums in self.sums for part in sums.rows}

    def resident(self) -> list[Part]:
        """What lies in the pool, besides the arena."""
        rows = [part for sums in self.sums if sums.resident for part in sums.rows]
        parts: list[Part] = [*self.twiddles, *self.matrices, *self.columns, *rows]
        return [part for part in parts if size_of(self.curve, part)]


def size_of(curve: CurveParams, part: Part) -> int:
    """Bytes of the pool that a part takes."""
    match part:
        case RowsPart():
            depth = part.plan.depth if part.plan is not None else 1
            return depth * part.n * point_bytes(curve, part.group)
        case MatricesPart():
            if not part.resident:
                return 0
            return sparse.resident_bytes(curve, part.count, part.rows, part.entries, part.size)
        case ColumnPart():
            return part.n * curve.scalar.bytes if part.resident else 0
        case TwiddlesPart():
            return twiddle_bytes(part.domain, part.compact)
        case ArenaPart():
            return part.size


def has_multiples(part: object) -> bool:
    return isinstance(part, RowsPart) and part.plan is not None


def is_shared(part: object) -> bool:
    """Whether proofs with several keys may use it at once: it is nobody's, and only read."""
    return isinstance(part, TwiddlesPart) or (isinstance(part, RowsPart) and part.shared != "")


def gives_way(part: Part) -> bool:
    """Whether it goes before the bases and matrices of keys do: it is soon made again, or not needed."""
    return has_multiples(part) or isinstance(part, TwiddlesPart | ArenaPart)


Rehearse = Callable[[Layout], int]
"""The bytes of the arena of a proof with this layout."""


@lru_cache(maxsize=1024)
def _choose(
    curve: CurveParams, groups: tuple[Group, ...], n: int, room: int, properties: Properties, keep: bool
) -> MsmPlan:
    return choose_plan(curve, groups, n, room, properties, keep)


def choose(
    curve: CurveParams,
    groups: tuple[Group, ...],
    n: int,
    properties: Properties,
    room: int = UNBOUNDED,
    keep: bool = False,
) -> MsmPlan:
    """:func:`~gpuprover.cuda.msm_plan.choose_plan`; a little less room does not mean another plan."""
    unit = 1 << max(0, room.bit_length() - 4)
    return _choose(curve, groups, n, room // unit * unit, properties, keep)


def layouts(
    demand: Demand,
    device: Device,
    host_groups: Collection[Group],
    rehearse: Rehearse,
    free: int,
    lies: Sequence[object],
    shared: bool,
) -> Iterator[tuple[Layout, int, int]]:
    """(layout, bytes of the pool beside the arena, bytes of the arena) of all that there are, the best first.

    Args:
        free: bytes that nobody holds.
        lies: what of the key is there already; nothing at its first proof.
        shared: whether another proof uses that now.
    """
    curve, properties = demand.curve, device.properties
    sets = {bases.name: bases for bases in demand.bases if bases.size and bases.group not in host_groups}
    requests: list[tuple[tuple[str, ...], tuple[Group, ...], int, tuple[str, ...]]] = []
    for together in demand.together:
        names = tuple(name for name in together if name in sets)
        if names:
            groups = tuple(sets[name].group for name in names)
            shared_as = tuple(sets[name].shared for name in names)
            requests.append((names, groups, sets[names[0]].size, shared_as))

    def sized(layout: Layout) -> tuple[Layout, int, int]:
        return layout, sum(aligned(size_of(curve, p)) for p in layout.resident()), rehearse(layout)

    def cut(sums: SumsPlan, halvings: int) -> SumsPlan:
        """A 2^halvings-th of the points at a time."""
        points = max(min(sums.n, SHORTEST_SLICE), -(-sums.n >> halvings))
        return replace(sums, plan=choose(curve, sums.plan.groups, points, properties))

    plain = Layout(
        curve,
        tuple(
            SumsPlan(names, n, choose(curve, groups, n, properties), shared_as)
            for names, groups, n, shared_as in requests
        ),
        tuple(
            MatricesPart(m.name, m.count, m.rows, m.entries, min(sparse.SLICE, max(sparse.CHUNK, m.entries)))
            for m in demand.matrices
        ),
        tuple(ColumnPart(column.name, column.size) for column in demand.columns),
        tuple(map(TwiddlesPart, demand.domains)),
    )
    # 0. Tables are made once; what another proof uses is not made a second time.
    there = {part.name: part for part in lies if isinstance(part, RowsPart)}
    if (shared or any(map(has_multiples, lies))) and all(
        name in there for names, *_ in requests for name in names
    ):
        as_it_lies = []
        for sums in plain.sums:
            kept = [there[name].plan for name in sums.names]
            same = all(plan == kept[0] for plan in kept)
            as_it_lies.append(replace(sums, plan=kept[0]) if kept[0] is not None and same else sums)
        yield sized(replace(plain, sums=tuple(as_it_lies)))
        yield sized(replace(plain, sums=tuple(as_it_lies), beside=False))
    # 1. What is left beside all that a proof needs is shared out by the bases' own sizes.
    sizes = [sum(size_of(curve, part) for part in sums.rows) for sums in plain.sums]
    for beside, share in product((True, False), (1, 2, 4)) if lies else ():
        _, held, arena = sized(replace(plain, beside=beside))
        left = (free - held - arena) // share
        if left <= 0:
            continue
        with_tables = []
        for sums, own in zip(plain.sums, sizes, strict=True):
            room = sums.plan.bytes(properties) + left * own // sum(sizes)
            plan = choose(curve, sums.plan.groups, sums.n, properties, room, keep=True)
            with_tables.append(replace(sums, plan=plan) if plan.n >= sums.n >= SHORTEST_TABLE else sums)
        layout, held_now, arena_now = sized(replace(plain, sums=tuple(with_tables), beside=beside))
        if held_now + arena_now <= free and any(sums.plan.depth > 1 for sums in layout.sums):
            yield layout, held_now, arena_now
    # 2. to 7. Other keys do not give way to sums beside each other.
    layout, held, arena = sized(plain)
    if held + arena <= free:
        yield layout, held, arena
    for halvings in range(3):
        layout = replace(plain, beside=False, sums=tuple(cut(sums, halvings) for sums in plain.sums))
        yield sized(layout)
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        sent = replace(layout.sums[i], resident=False)
        layout = replace(layout, sums=(*layout.sums[:i], sent, *layout.sums[i + 1 :]))
        yield sized(layout)
    layout = replace(
        layout,
        matrices=tuple(replace(part, resident=False) for part in layout.matrices),
        columns=tuple(replace(part, resident=False) for part in layout.columns),
    )
    yield sized(layout)
    layout = replace(layout, twiddles=tuple(replace(part, compact=True) for part in layout.twiddles))
    yield sized(layout)

    def shorter(part: MatricesPart, halvings: int) -> MatricesPart:
        longest = min(sparse.SLICE, max(sparse.CHUNK, part.entries))
        return replace(part, size=max(min(SHORTEST_SLICE, longest), longest >> halvings))

    for halvings in range(3, MOST_HALVINGS + 1):
        layout = replace(
            layout,
            sums=tuple(cut(sums, halvings) for sums in layout.sums),
            matrices=tuple(shorter(part, halvings) for part in layout.matrices),
        )
        yield sized(layout)


@dataclass
class Session:
    """What one proof holds.

    Attributes:
        demand: what it asked for.
        layout: where the parts of its key lie.
        arena: memory for all else.
        entries: the resident parts, and what the arena lies in, pinned.
        streams: the main one, those for sums in G2 and for sorts, and those for reductions; STREAMS, its own.
    """

    demand: Demand
    layout: Layout
    arena: Arena
    entries: list[Resident]
    streams: list[Stream]

    def group(self, name: str) -> Group:
        """The group of the bases of this name."""
        return named(self.demand.bases, name).group

    def bases(self, name: str) -> tuple[SumsPlan, RowsPart]:
        """The sums and the part of the bases of this name."""
        return self.layout.rows[name]

    def entry(self, part: Part) -> Resident:
        """Where a resident part lies."""
        # Of a layout that came before, it is the very part.
        for entry in self.entries:
            if entry.kind is part:
                return entry
        same = type(part)
        return next(e for e in self.entries if type(e.kind) is same and e.kind == part)


@dataclass(frozen=True)
class _Settled:
    """What a key's last proof asked for and got."""

    asked: tuple[object, ...]
    layout: Layout
    arena: int
    entries: list[Resident]
    until: float
    """By the monotonic clock."""


class Residency:
    """What lies on one device, and what proofs on it share; any number of backends in any threads.

    Args:
        limit: bytes of device memory that may be taken; by default a share of what is free.

    Attributes:
        arenas: sizes of arenas that have been computed.
        leaked: bytes that successful proofs had not given back at their end; 0.
    """

    def __init__(self, device: Device, limit: int | None = None) -> None:
        self.device = device
        self.pool = Pool(device, limit)
        self.residents = Residents(self.pool)
        self.pool.reclaim = self.residents.reclaim
        self.leaked = 0
        self._failure: str | None = None
        self._streams: list[list[Stream]] = []
        self._copies: list[Stream] = []
        self.arenas: dict[tuple[object, ...], int] = {}

    # Proofs ----------------------------------------------------------------------------

    def plan(
        self,
        demand: Demand,
        host_groups: Collection[Group],
        rehearse: Rehearse,
        budget: int | None,
    ) -> tuple[Layout, int, int]:
        """The layout of a first proof with a key: (layout, bytes in the pool beside the arena, of the arena).

        Raises:
            OutOfMemory: not even the leanest fits the budget, or the device.
        """
        room = self.pool.limit if budget is None else budget
        need = 0
        for layout, held, arena in layouts(
            demand, self.device, host_groups, rehearse, room, (), shared=False
        ):
            need = held + arena
            if need <= room:
                return layout, held, arena
        raise OutOfMemory(needs(self.device.name, "a proof with this key", need, room))

    def begin(
        self,
        demand: Demand,
        owner: object,
        host_groups: Collection[Group],
        rehearse: Rehearse,
        budget: int | None = None,
    ) -> Session:
        """Takes the memory of a proof: entries for the key's parts, and an arena; ``budget`` bounds both.

        Raises:
            DeviceError: the device has failed before.
            OutOfMemory: not even the leanest layout fits beside what other proofs hold.
        """
        with self.pool.lock:
            if self._failure is not None:
                raise DeviceError(self._failure)
            asked = demand, frozenset(host_groups), budget
            session = self._as_before(demand, asked, owner)
            if session is not None:
                return session
            own, everything = self._known(demand, owner), self.residents.all()
            idle = [e for e in everything if not e.pins]
            mine = [e for e in everything if e in own or (e in idle and e in self.residents.of(self))]
            free = self.pool.available + sum(e.size for e in mine)
            total = free + sum(e.size for e in idle if e not in mine)
            if budget is not None:
                free, total = min(free, budget), min(total, budget)
            lies, shared = [e.kind for e in own], any(e.pins for e in own)
            error: OutOfMemory | None = None
            need = 0
            for layout, rest, arena in layouts(
                demand, self.device, host_groups, rehearse, free, lies, shared
            ):
                need = rest + arena
                if need > total:
                    continue
                try:
                    session = self._take(demand, layout, arena, owner)
                except OutOfMemory as refused:
                    error = refused
                    continue
                # At a first proof nobody knows whether the key comes again, and a later one may have tables.
                if lies:
                    until = time.monotonic() + SETTLED_SECONDS
                    entries = [e for e in session.entries if not isinstance(e.kind, ArenaPart)]
                    self.residents.note(owner, _Settled(asked, layout, arena, entries, until))
                return session
            if error is None:
                error = OutOfMemory(needs(self.device.name, "a proof with this key", need, total))
            raise error

    def _known(self, demand: Demand, owner: object) -> list[Resident]:
        """What lies there of a key, and of the bases that it shares with others."""
        shared = {bases.shared for bases in demand.bases} - {""}
        ours = [
            e for e in self.residents.of(self) if isinstance(e.kind, RowsPart) and e.kind.shared in shared
        ]
        return [*self.residents.of(owner), *ours]

    def _as_before(self, demand: Demand, asked: tuple[object, ...], owner: object) -> Session | None:
        """What the last proof had, while all of it lies there unused; nothing is asked of the device."""
        settled = self.residents.noted(owner)
        if settled is None or settled.asked != asked or settled.until < time.monotonic():
            return None
        shared = any(e.gone or (e.pins and not is_shared(e.kind)) for e in settled.entries)
        place = self._idle_arena(settled.arena)
        if shared or place is None:
            return None
        entries = [*settled.entries, place]
        streams = self._take_streams(place)
        for entry in entries:
            self.residents.pin(entry)
        arena = Arena(place.block.address, settled.arena)
        return Session(demand, settled.layout, arena, entries, streams)

    def _idle_arena(self, size: int) -> Resident | None:
        """The smallest entry in which such an arena may lie."""
        found = [e for e in self.residents.of(self) if isinstance(e.kind, ArenaPart) and not e.pins]
        # Not in one that is far too large: others could do with it.
        return min((e for e in found if size <= e.size <= 2 * size), key=lambda e: e.size, default=None)

    def _take_streams(self, place: Resident) -> list[Stream]:
        """Those of a proof, whose main stream goes on when the place of its arena is ready."""
        if not self._streams:
            self._streams.append([self.device.new_stream() for _ in range(STREAMS)])
        if place.ready is not None:
            self.device.wait(self._streams[-1][0], place.ready)
        return self._streams.pop()

    def _take(self, demand: Demand, layout: Layout, arena: int, owner: object) -> Session:
        """Pins or adds an entry for each resident part and for the arena; gives up the owner's others."""
        entries: list[Resident] = []
        added: list[Resident] = []
        try:
            wanted: list[tuple[object, Part]] = []
            for part in layout.resident():
                whose = self if is_shared(part) else owner
                found = [e for e in self.residents.of(whose) if e.kind == part and e not in entries]
                if found:
                    self._pin(found[0], entries)
                else:
                    wanted.append((whose, part))
            place = self._idle_arena(arena)
            if place is not None:
                self._pin(place, entries)
            else:
                wanted.append((self, ArenaPart(arena)))
            for entry in self._known(demand, owner):
                if not entry.pins:
                    self.residents.drop(entry)
            for whose, part in wanted:
                added.append(self.residents.add(whose, part, size_of(layout.curve, part), gives_way(part)))
            (place,) = (e for e in (*entries, *added) if isinstance(e.kind, ArenaPart))
            streams = self._take_streams(place)
        except BaseException:
            for entry in (*entries, *added):
                self.residents.unpin(entry)
            for entry in added:
                self.residents.drop(entry)
            raise
        return Session(demand, layout, Arena(place.block.address, arena), entries + added, streams)

    @contextmanager
    def stream(self) -> Iterator[Stream]:
        """A stream for copies; with nothing left to do when it comes back."""
        with self.pool.lock:
            stream = self._copies.pop() if self._copies else self.device.new_stream()
        try:
            yield stream
        finally:
            with self.pool.lock:
                self._copies.append(stream)

    def _pin(self, entry: Resident, entries: list[Resident]) -> None:
        self.residents.pin(entry)
        entries.append(entry)

    def end(self, session: Session, done: bool) -> None:
        """Gives back what :meth:`begin` took."""
        main = session.streams[0]
        with suppress(DeviceError):
            # What is on its way must not write into memory that is somebody else's by then. After all sums of
            # a proof only its main stream has anything to do.
            if not done:
                self.device.synchronize()
            for entry in session.entries:
                with entry.lock:
                    if entry.ready is not None and self.device.reached(entry.ready):
                        entry.ready = None
        with suppress(DeviceError):
            # A witness, and what comes of it, is secret: nobody who gets this memory next shall find it.
            self.device.fill(session.arena.start, 0, session.arena.size, main)
        with suppress(DeviceError):
            (place,) = (e for e in session.entries if isinstance(e.kind, ArenaPart))
            place.ready = self.device.mark(main)
        left = session.arena.close()
        with self.pool.lock:
            if done:
                self.leaked += left
            for entry in session.entries:
                self.residents.unpin(entry)
            self._streams.append(session.streams)
            if self._failure is not None:
                self.residents.clear()

    def shared(self, curve: CurveParams, part: TwiddlesPart) -> Resident:
        """The entry for tables of transforms, pinned."""
        with self.pool.lock:
            for entry in self.residents.of(self):
                if entry.kind == part:
                    self.residents.pin(entry)
                    return entry
            return self.residents.add(self, part, size_of(curve, part), table=True)

    def fail(self, error: DeviceError) -> None:
        """What went wrong; a device that is lost is used no more."""
        with self.pool.lock:
            if self.device.lost:
                self._failure = self._failure or error.message
