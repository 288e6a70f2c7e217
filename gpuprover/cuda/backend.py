"""The backend ``cuda``: what a prover asks for, as launches on a GPU.

Everything of a proof stays on the device, from the witness, which is sent once, to the sums that come back.
Short work with points, and what set-up and verification ask of them, is the CPU backend's.

Within :meth:`CudaBackend.session` all memory comes from one arena, whose size is known because the same steps
have been rehearsed on a device that does nothing. Outside of it, each vector is an allocation of the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpuprover.backend import Backend, Form, Term
from gpuprover.columns import Formula
from gpuprover.cuda import sparse
from gpuprover.cuda.allocation import ALIGNMENT, Arena, Block, Scope, Source, Within, aligned
from gpuprover.cuda.columns import Columns, Places, Shifted, Span, records_of
from gpuprover.cuda.device import Address, Device, OnStream
from gpuprover.cuda.handles import DeviceBases, DeviceMatrices, DeviceVector, Given
from gpuprover.cuda.msm import Msm, fixed_multiples
from gpuprover.cuda.msm_plan import MsmPlan, point_bytes
from gpuprover.cuda.ntt import Transform
from gpuprover.cuda.rehearsal import Nothing
from gpuprover.cuda.residency import (
    STREAMS,
    ColumnPart,
    Layout,
    MatricesPart,
    Residency,
    RowsPart,
    Session,
    TwiddlesPart,
    choose,
    size_of,
)
from gpuprover.cuda.sparse import (
    SLICE,
    MatricesShape,
    SparseMatrices,
    resident_bytes,
    slice_bytes,
    staging_bytes,
)
from gpuprover.cuda.sums import Scalars, Sums
from gpuprover.cuda.vectors import ADD, MUL, SUB, Vectors
from gpuprover.curves import CurveParams, Group
from gpuprover.demand import Budget, Demand, MemoryPlan, named
from gpuprover.errors import DeviceError, OutOfMemory
from gpuprover.job import Job
from gpuprover.limbs import Words, address, field_to_words, ints_to_words
from gpuprover.memory import require
from gpuprover.polynomial import Coset, Direction, Domain, Order

FEWEST_MULTIPLES = 1 << 12
"""Multiples of a point below which the CPU has them before the GPU's table is made. A prediction."""
MOST_MULTIPLES = 1 << 20
"""Multiples of a point at a time."""
SENT = 2 << 20
"""Bytes that one thread sends, at least. A prediction."""


class CudaBackend:
    """Implements :class:`gpuprover.backend.Backend` on a GPU.

    Args:
        host: the CPU's backend, of this curve and job.
        host_parts: names of groups whose sums that computes meanwhile, on the job's threads.
    """

    def __init__(
        self,
        curve: CurveParams,
        job: Job,
        gpu: Residency,
        host: Backend,
        host_parts: Collection[str] = (),
    ) -> None:
        self.name = gpu.device.name
        self.curve, self.job = curve, job
        self._gpu = gpu
        self._device: Device = gpu.device
        self._host_groups = frozenset(map(Group, host_parts))
        self._hollow = False
        self._memory: Source = gpu.pool
        self._element = curve.scalar.bytes
        self._cpu, self.points = host, host.points
        self._fixed: tuple[object, Words] = None, np.empty((0, 0), dtype=np.uint64)
        self._session: Session | None = None
        self._witness: list[tuple[int, Words, Block]] = []
        self._transforms: dict[Domain, Transform] = {}

    # Memory ------------------------------------------------------------------------

    def upload(self, values: Words, form: Form = Form.CANONICAL) -> DeviceVector:
        return self._written(self._new(len(values)), values, form)

    def _written(self, v: DeviceVector, values: Words, form: Form) -> DeviceVector:
        if len(v):
            self._write(v.address, values)
            if form is not Form.MONTGOMERY:
                self._vectors.to_montgomery(v.span, form, v.span)
        return v

    def download(self, v: DeviceVector, form: Form = Form.CANONICAL) -> Words:
        out = np.empty((len(v), self.curve.scalar.limbs), dtype=np.uint64)
        if not len(v):
            return out
        if form is Form.MONTGOMERY:
            self._device.read(out, v.address)
            return out
        converted = self._new(len(v))
        self._vectors.from_montgomery(v.span, form, converted.span)
        self._device.read(out, converted.address)
        converted.free()
        return out

    def free(self, *handles: DeviceVector | DeviceMatrices | DeviceBases) -> None:
        for handle in handles:
            handle.free()

    def _new(self, n: int) -> DeviceVector:
        """A vector with arbitrary contents."""
        return DeviceVector(n, Block(self._memory, n * self._element) if n else None)

    def plan(self, demand: Demand, budget: Budget) -> MemoryPlan:
        *roomier, leanest = demand.choices
        for choice in roomier:
            with suppress(OutOfMemory):
                return self._plan(choice, budget)
        return self._plan(leanest, budget)

    def _plan(self, demand: Demand, budget: Budget) -> MemoryPlan:
        """What the host takes for the matrices does not count as the device's."""
        layout, _, arena = self._gpu.plan(
            demand, self._host_groups, lambda layout: self._arena_bytes(demand, layout), budget.device
        )
        sizes = {part: aligned(size_of(self.curve, part)) for part in layout.resident()}
        rows = [part for part in layout.resident() if isinstance(part, RowsPart)]
        points = sum(part.n * point_bytes(self.curve, part.group) for part in rows)
        tables = sum(sizes[part] for part in rows) - points
        tables += sum(sizes[part] for part in layout.twiddles if part in sizes)
        key = points + sum(
            size for part, size in sizes.items() if isinstance(part, MatricesPart | ColumnPart)
        )
        staging = sum(staging_bytes(self.curve, matrices.entries) for matrices in demand.matrices)
        require(staging, budget.host, f"a proof on {self.name}")
        return MemoryPlan(key, tables, arena, staging)

    # The proof's key -----------------------------------------------------------------

    @contextmanager
    def session(self, demand: Demand, owner: object, budget: Budget) -> Iterator[Demand]:
        """A proof has memory and streams of its own: what is made within stays within, and what is made
        outside of it outside."""
        if self._session is not None:
            raise ValueError("a backend makes one proof at a time")
        done = False
        try:
            session = self._begin(demand, owner, budget)
            self._session, self._memory = session, session.arena
            self._device = OnStream(self._gpu.device, session.streams[0])
            try:
                yield session.demand
                done = True
            finally:
                for _, _, block in self._witness:
                    block.free()
                self._witness.clear()
                self._transforms.clear()
                self._session, self._memory = None, self._gpu.pool
                self._device = self._gpu.device
                self._gpu.end(session, done)
        except DeviceError as error:
            self._gpu.fail(error)  # if the device is lost with it
            raise

    def _begin(self, demand: Demand, owner: object, budget: Budget) -> Session:
        def begin(choice: Demand) -> Session:
            return self._gpu.begin(
                choice,
                owner,
                self._host_groups,
                lambda layout: self._arena_bytes(choice, layout),
                budget.device,
            )

        *roomier, leanest = demand.choices
        for choice in roomier:
            with suppress(OutOfMemory):
                return begin(choice)
        return begin(leanest)

    @property
    def _opened(self) -> Session:
        if self._session is None:
            raise ValueError("no session is open")
        return self._session

    def bases(self, name: str, points: Words) -> DeviceBases:
        self.job.check()
        n = len(points)
        group = self._opened.group(name)
        if group in self._host_groups:
            return DeviceBases(
                group, n, host=None if self._hollow else self._cpu.prepare_bases(group, points)
            )
        if not n:
            return DeviceBases(group, n)
        sums, part = self._opened.bases(name)
        if not sums.resident:
            # Never touched in a rehearsal, whose points are all at one place.
            sent = np.empty(points.shape, dtype=np.uint64) if self._hollow else points
            return DeviceBases(group, n, sums.plan, points=sent)
        if self._hollow:
            return DeviceBases(group, n, sums.plan, self._table(part, sums.plan, Address(0), Address(0)))
        entry = self._opened.entry(part)
        place = entry.block.address
        entry.filled(
            self._device, part.shared or address(points), lambda: self._table(part, sums.plan, place, points)
        )
        return DeviceBases(group, n, sums.plan, place)

    def matrices(
        self,
        name: str,
        matrix_index: NDArray[np.uint32],
        row_index: NDArray[np.uint32],
        column_index: NDArray[np.uint32],
        values: Words,
        form: Form,
    ) -> DeviceMatrices:
        self.job.check()
        part = named(self._opened.layout.matrices, name)
        if self._hollow:
            partials = sparse.partials_bound(part.entries)
            return DeviceMatrices(MatricesShape(part.count, part.rows, partials, part.size, part.resident))

        def make() -> SparseMatrices:
            arrays = matrix_index, row_index, column_index, values
            return SparseMatrices(
                self._device, self.curve, part.count, part.rows, *arrays, form, entries=part.size
            )

        if not part.resident:
            return DeviceMatrices(make())
        entry = self._opened.entry(part)

        def fill() -> SparseMatrices:
            made = make()
            made.place(entry.block.address, self.job.check)
            return made

        return DeviceMatrices(entry.filled(self._device, address(values), fill).on(self._device))

    def column(self, name: str, values: Words, form: Form) -> DeviceVector:
        part = named(self._opened.layout.columns, name)
        if not part.resident:
            return self.upload(values, form)
        if self._hollow:
            return DeviceVector(part.n, None)
        entry = self._opened.entry(part)
        v = DeviceVector(part.n, None, entry.block.address)
        entry.filled(self._device, address(values), lambda: self._written(v, values, form))
        return v

    def _arena_bytes(self, demand: Demand, layout: Layout) -> int:
        """The arena of a proof: its own steps, on a device that does nothing."""
        known = self._gpu.arenas.get((demand, layout, self._host_groups))
        if known is not None:
            return known
        arena = self.rehearsed(demand, layout, Nothing(self._device))
        self._gpu.arenas[demand, layout, self._host_groups] = arena
        return arena

    def rehearsed(self, demand: Demand, layout: Layout, device: Device) -> int:
        """The bytes of the arena of a proof whose steps are run on a device that does nothing."""
        gpu = Residency(device)
        double = type(self)(
            self.curve, Job(threads=self.job.threads), gpu, self._cpu, [g.value for g in self._host_groups]
        )
        double._hollow = True
        arena = double._memory = Arena(ALIGNMENT, 1 << 62)
        streams = [device.new_stream() for _ in range(STREAMS)]
        double._session = Session(demand, layout, arena, [], streams)
        demand.rehearse(demand, double)
        return arena.extent

    def _table(self, part: RowsPart, plan: MsmPlan, at: Address, points: Words | Address) -> Address:
        """Brings bases to a place on the device, with the multiples that the part has."""
        with Scope(self._memory) as memory:
            kept = part.plan or replace(plan, n=part.n, depth=1)
            msm = Msm(self._device, self.curve, self.points, self.job, Within(at, memory))
            return msm.bases(kept, part.group, points, part.n).address

    # Vectors -------------------------------------------------------------------------

    @property
    def _vectors(self) -> Vectors:
        return Vectors(self._device, self.curve, self.job.check)

    def _pointwise(self, operation: int, a: DeviceVector, b: DeviceVector) -> DeviceVector:
        out = self._new(len(a))
        self._vectors.pointwise(operation, a.span, b.span, out.span)
        return out

    def add(self, a: DeviceVector, b: DeviceVector) -> DeviceVector:
        return self._pointwise(ADD, a, b)

    def sub(self, a: DeviceVector, b: DeviceVector) -> DeviceVector:
        return self._pointwise(SUB, a, b)

    def mul(self, a: DeviceVector, b: DeviceVector) -> DeviceVector:
        return self._pointwise(MUL, a, b)

    def multiply_subtract_in_place(self, a: DeviceVector, b: DeviceVector, c: DeviceVector) -> DeviceVector:
        self._vectors.multiply_subtract(a.span, b.span, c.span)
        return a

    def scale_powers_in_place(self, v: DeviceVector, factor: int, base: int) -> DeviceVector:
        with Scope(self._memory) as memory:
            self._vectors.scale_powers(v.span, factor, base, memory)
        return v

    def batch_inverse(self, v: DeviceVector) -> DeviceVector:
        out = self._new(len(v))
        self._vectors.batch_inverse(v.span, out.span)
        return out

    def ntt(
        self,
        v: DeviceVector,
        domain: Domain,
        direction: Direction,
        order: Order = Order.NATURAL_TO_NATURAL,
        coset: Coset | int = Coset.NONE,
    ) -> DeviceVector:
        self._check_lengths([v], domain)
        if isinstance(coset, int):
            return self._ntt_on(domain.shift(coset), v, domain, direction, order)
        # Only from natural to natural order do the passes need room beside the vector.
        natural = order is Order.NATURAL_TO_NATURAL
        scratch = Block(self._memory, len(v) * self._element) if natural else None
        with self._tables(domain) as tables:
            to = None if scratch is None else scratch.address
            at = tables.ntt(v.address, to, direction, order, coset)
        if scratch is not None:
            if at == scratch.address:
                v.swap(scratch)
            scratch.free()
        return v

    def to_coset_in_place(
        self, vectors: Sequence[DeviceVector], domain: Domain, coset: Coset
    ) -> Sequence[DeviceVector]:
        self._check_lengths(vectors, domain)
        with self._tables(domain) as tables:
            tables.to_coset([v.address for v in vectors], coset)
        return vectors

    def _check_lengths(self, vectors: Sequence[DeviceVector], domain: Domain) -> None:
        for v in vectors:
            if len(v) != domain.size:
                raise ValueError(f"a vector of length {len(v)} on a domain of {domain.size}")
        self.job.check()

    @contextmanager
    def _tables(self, domain: Domain) -> Iterator[Transform]:
        """The tables for a domain: the proof's, or others that lie in the pool, or new ones."""
        if domain in self._transforms:
            yield self._transforms[domain]
            return
        gpu = self._gpu
        known = () if self._session is None else self._session.layout.twiddles
        own = next((part for part in known if part.domain == domain), None)
        part = own or TwiddlesPart(domain)
        entry = gpu.shared(self.curve, part)
        memory = Arena(entry.block.address, entry.size)
        try:
            tables = entry.filled(
                self._device, domain, lambda: Transform(self._device, memory, domain, part.compact)
            ).on(self._device)
            if own is not None:
                # Of a part that stays to the proof's end.
                self._transforms[domain] = tables
            yield tables
        finally:
            gpu.residents.unpin(entry)

    def _ntt_on(
        self, g: int, v: DeviceVector, domain: Domain, direction: Direction, order: Order
    ) -> DeviceVector:
        """On the coset g·⟨ω⟩: coefficient i is multiplied by g^i before, or by g^−i after it."""
        if direction is Direction.FORWARD:
            self._scale_coefficients(v, g, order is Order.REVERSED_TO_NATURAL)
            return self.ntt(v, domain, direction, order)
        self.ntt(v, domain, direction, order)
        self._scale_coefficients(v, pow(g, -1, self.curve.r), order is Order.NATURAL_TO_REVERSED)
        return v

    def _scale_coefficients(self, v: DeviceVector, base: int, in_reverse: bool) -> None:
        if not in_reverse:
            self.scale_powers_in_place(v, 1, base)
        elif len(v) > 1:
            with self._columns() as columns:
                columns.scale_reversed(v.span, base)

    # Polynomials and columns -------------------------------------------------------------

    @contextmanager
    def _columns(self) -> Iterator[Columns]:
        with Scope(self._memory) as memory:
            yield Columns(self._device, self.curve, self.job.check, memory)

    def evaluate(
        self,
        formula: Formula,
        columns: Mapping[str, DeviceVector],
        challenges: Mapping[str, int] = {},
        step: int = 1,
    ) -> list[DeviceVector]:
        n = formula.rows({name: len(v) for name, v in columns.items()})
        outs = [self._new(n) for _ in formula.results]
        spans = {name: columns[name].span for name in formula.columns}
        with self._columns() as launches:
            launches.evaluate(formula, spans, challenges, step, n, [v.address for v in outs])
        return outs

    def combine(self, terms: Sequence[Term], length: int | None = None) -> DeviceVector:
        if length is None:
            if not terms:
                raise ValueError("a sum of no terms has no length")
            length = max(max(0, len(v) + shift) for v, _, shift in terms)
        out = self._new(length)
        with self._columns() as columns:
            columns.combine([Shifted(v.span, scalar, shift) for v, scalar, shift in terms], out.span)
        return out

    def extend(self, v: DeviceVector, domain: Domain, cosets: Sequence[Coset | int]) -> list[DeviceVector]:
        results = []
        for coset in cosets:
            folded = self._new(domain.size)
            with self._columns() as columns:
                columns.fold_onto_coset(v.span, domain.shift(coset), folded.span)
            results.append(self.ntt(folded, domain, Direction.FORWARD))
        return results

    def values_at(self, queries: Sequence[tuple[DeviceVector, int]]) -> list[int]:
        with self._columns() as columns:
            return columns.values([(v.span, x) for v, x in queries])

    def divide(self, v: DeviceVector, root: int, degree: int = 1) -> tuple[DeviceVector, DeviceVector]:
        if len(v) <= degree:
            return self._new(0), self.combine([Term(v)], degree)
        quotient, remainder = self._new(len(v) - degree), self._new(degree)
        with self._columns() as columns:
            columns.divide(v.span, root, degree, quotient.address, remainder.address)
        return quotient, remainder

    def running_product(
        self, numerators: DeviceVector, denominators: DeviceVector, start: int = 1
    ) -> DeviceVector:
        n = len(numerators)
        ratios = self.batch_inverse(denominators)
        self._vectors.pointwise(MUL, numerators.span, ratios.span, ratios.span)
        out = self._new(n + 1)
        self._device.write(out.address, field_to_words(self.curve.scalar, [start]))
        with self._columns() as columns:
            columns.running_product(ratios.span, start, Address(out.address + self._element))
        ratios.free()
        return out

    def powers(self, n: int, base: int, factor: int = 1) -> DeviceVector:
        out = self._new(n)
        with self._columns() as columns:
            columns.powers(base, factor, out.span)
        return out

    def gather(self, v: DeviceVector, indices: NDArray[np.uint32]) -> DeviceVector:
        """Indices are sent as they are, and looked at where they are used."""
        out = self._new(len(indices))
        with self._columns() as columns:
            outside = columns.gather(v.span, self._contiguous(indices, np.uint32), out.address)
        if outside:
            out.free()
            raise IndexError(f"{outside} indices are not below {len(v)}, the vector's length")
        return out

    def signals(
        self,
        values: Words,
        left: NDArray[np.uint32],
        right: NDArray[np.uint32],
        left_factors: Words,
        right_factors: Words,
    ) -> DeviceVector:
        """Combinations of combinations come in passes; chains that are too long for that are the CPU's."""
        known, count = 1 + len(values), len(left)
        out = self._new(known + count)
        self._device.fill(out.address, 0, self._element)
        self._write(Address(out.address + self._element), values)
        whole = Span(out.address, known)
        self._vectors.to_montgomery(whole, Form.CANONICAL, whole)
        if not count:
            return out
        if self._hollow:
            records, places = np.empty(count * (8 + 2 * self._element), np.uint8), Places(0, 0, 0, 0, 0)
        else:
            records, places = records_of(left, right, left_factors, right_factors)
        with self._columns() as columns:
            if columns.combine_signals(out.address, known, records, places, count):
                return out
        found = self._cpu.signals(values, left, right, left_factors, right_factors)
        self._write(out.address, self._cpu.download(found, Form.MONTGOMERY))
        return out

    def _contiguous(self, array: NDArray[Any], dtype: Any) -> NDArray[Any]:
        """The array as it is sent; for a rehearsal, whose arrays lie at one place, another of its size."""
        return np.empty(array.shape, dtype) if self._hollow else np.ascontiguousarray(array, dtype=dtype)

    def interleave(self, vectors: Sequence[DeviceVector]) -> DeviceVector:
        out = self._new(len(vectors) * max(map(len, vectors), default=0))
        with self._columns() as columns:
            columns.interleave([v.span for v in vectors], out.span)
        return out

    def deinterleave(self, v: DeviceVector, count: int) -> list[DeviceVector]:
        if len(v) % count:
            raise ValueError(f"a vector of length {len(v)} in {count} parts")
        outs = [self._new(len(v) // count) for _ in range(count)]
        with self._columns() as columns:
            columns.deinterleave(v.span, [out.address for out in outs])
        return outs

    # Sparse products -------------------------------------------------------------------

    def prepare_matrices(
        self,
        count: int,
        rows: int,
        matrix_index: NDArray[np.uint32],
        row_index: NDArray[np.uint32],
        column_index: NDArray[np.uint32],
        values: Words,
        form: Form,
    ) -> DeviceMatrices:
        self.job.check()
        made = SparseMatrices(
            self._device,
            self.curve,
            count,
            rows,
            matrix_index,
            row_index,
            column_index,
            values,
            form,
            entries=SLICE,
        )
        block = Block(self._memory, resident_bytes(self.curve, count, rows, len(values)))
        made.place(block.address, self.job.check)
        return DeviceMatrices(made, block)

    def spmv(self, m: DeviceMatrices, scalars: Words) -> list[DeviceVector]:
        given = self._given(scalars)
        outs = [self._new(m.matrices.rows) for _ in range(m.matrices.count)]
        scratch = []
        if m.matrices.partials:
            scratch.append(Block(self._memory, m.matrices.partials * self._element))
        partials = scratch[0].address if scratch else None
        staging = None
        if not m.matrices.placed:
            scratch.append(Block(self._memory, slice_bytes(self.curve, m.matrices.entries)))
            staging = scratch[-1].address
        m.matrices.multiply(
            given.address, len(scalars), [v.address for v in outs], partials, staging, self.job.check
        )
        for block in scratch:
            block.free()
        given.free()
        return outs

    def _given(self, scalars: Words) -> Given:
        """Canonical scalars of the host on the device; those of a proof are sent once, slices of them too."""
        words = np.ascontiguousarray(scalars, dtype=np.uint64)
        if self._session is None:
            return Given(self._send(words))
        start, size = address(words), words.nbytes
        for begin, held, block in self._witness:
            offset = start - begin
            if offset >= 0 and offset + size <= held.nbytes and offset % 16 == 0:
                return Given(block, offset, kept=True)
        block = self._send(words)
        self._witness.append((start, words, block))
        return Given(block, 0, kept=True)

    def _send(self, words: Words) -> Block:
        block = Block(self._memory, max(1, words.nbytes))
        self._write(block.address, words)
        return block

    def _write(self, start: Address, words: Words) -> None:
        words = self._contiguous(words, np.uint64)
        if words.nbytes < 2 * SENT or self._device.is_pinned(words):
            self._device.write(start, words)
            return
        # One thread copies into pinned memory more slowly than the bus takes it from there.
        row = words.nbytes // len(words)
        pieces = self.job.ranges(len(words), smallest=SENT // row)
        self.job.map(lambda r: self._device.write(start + r[0] * row, words[r[0] : r[1]]), pieces)

    # Points ------------------------------------------------------------------------------

    def prepare_bases(self, group: Group, points: Words, budget: int | None = None) -> DeviceBases:
        """In an allocation of their own; where that cannot be had, they are sent for every sum.

        None is for no tables: nobody has said that the bases are used again.
        """
        self.job.check()
        n, properties = len(points), self._device.properties
        if group in self._host_groups:
            return DeviceBases(group, n, host=self._cpu.prepare_bases(group, points))
        if not n:
            return DeviceBases(group, n)
        plan = choose(self.curve, (group,), n, properties, self._gpu.pool.available)
        if budget and plan.n >= n:
            room = min(plan.bytes(properties) + budget, self._gpu.pool.available)
            plan = choose(self.curve, (group,), n, properties, room, keep=True)
        part = RowsPart("", group, n, plan if plan.depth > 1 else None)
        try:
            block = Block(self._memory, size_of(self.curve, part))
        except OutOfMemory:
            return DeviceBases(group, n, replace(plan, depth=1), points=points)
        self._table(part, plan, block.address, points)
        return DeviceBases(group, n, plan, block.address, block)

    def msm(self, bases: DeviceBases, scalars: Words | DeviceVector) -> Words:
        return self.msm_many([([bases], scalars)])[0][0]

    def msm_many(
        self,
        requests: Sequence[tuple[Sequence[DeviceBases], Words | DeviceVector]],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> list[list[Words]]:
        """Sums in G1 on the main stream, in a proof's G2 on another; the host's while the device works.

        Where there is memory for it, the sorts of all requests but the first run beside the first one's sums,
        and the reduction of each sum beside the next ones. All is done when this returns.
        """
        for bases, scalars in requests:
            for b in bases:
                if b.n < len(scalars):
                    raise ValueError(f"{b.n} bases and {len(scalars)} scalars")
        found = [
            [np.zeros(b.group.words(self.curve), dtype=np.uint64) for b in bases] for bases, _ in requests
        ]
        with Scope(self._memory) as memory:
            sums = Sums(
                Msm(self._device, self.curve, self.points, self.job, memory), self._session, self._gpu.stream
            )
            try:
                self.start_sums(sums, requests)
                meanwhile()
                for i, (bases, scalars) in enumerate(requests):
                    places = [j for j, b in enumerate(bases) if b.host is not None]
                    if places:
                        handles = [bases[j].host for j in places]
                        points = self._cpu.msm_many([(handles, self._on_host(scalars))])[0]
                        for j, point in zip(places, points, strict=True):
                            found[i][j] = point
                for (i, j), point in sums.finish().items():
                    found[i][j] = point
            except BaseException:
                # The other stream may still write into what is given back here.
                with suppress(DeviceError):
                    self._device.synchronize()
                raise
        return found

    def start_sums(
        self, sums: Sums, requests: Sequence[tuple[Sequence[DeviceBases], Words | DeviceVector]]
    ) -> None:
        """Sends the scalars of requests, and launches their sums."""
        given: list[Given] = []
        placed: list[tuple[Sequence[DeviceBases], Scalars | None]] = []
        for bases, scalars in requests:
            n, on_device = len(scalars), None
            if n and any(b.plan is not None for b in bases):
                if isinstance(scalars, DeviceVector):
                    on_device = Scalars(scalars.address, n, Form.MONTGOMERY, self.curve.scalar.limbs)
                else:
                    given.append(self._given(scalars))
                    on_device = Scalars(given[-1].address, n, Form.CANONICAL, scalars.shape[1])
            placed.append((bases, on_device))
        sums.start(placed)
        for one in given:
            one.free()

    def fixed_base_mul(self, group: Group, point: Words, scalars: Words | DeviceVector) -> Words:
        if len(scalars) < FEWEST_MULTIPLES:
            return self._cpu.fixed_base_mul(group, point, self._on_host(scalars))
        words = self.download(scalars) if isinstance(scalars, DeviceVector) else scalars
        # A set-up asks for the same point's multiples block after block.
        asked = group, point.tobytes()
        if self._fixed[0] != asked:
            factors = ints_to_words(fixed_multiples(self.curve), self.curve.scalar.limbs)
            self._fixed = asked, self._cpu.fixed_base_mul(group, point, factors)
        table, out = self._fixed[1], np.empty((len(words), group.words(self.curve)), dtype=np.uint64)
        with Scope(self._memory) as memory:
            msm = Msm(self._device, self.curve, self.points, self.job, memory)
            at, size = memory.allocate(table.nbytes), min(len(words), MOST_MULTIPLES)
            self._device.write(at, table)
            given, result = memory.allocate(size * self._element), memory.allocate(size * 8 * out.shape[1])
            for lo in range(0, len(words), size):
                part = words[lo : lo + size]
                self._device.write(given, np.ascontiguousarray(part))
                msm.multiples(group, at, given, len(part), result)
                self._device.read(out[lo : lo + size], result)
        return out

    def _on_host(self, scalars: Words | DeviceVector) -> Any:
        """Scalars as the CPU backend takes them; needs no memory of the device."""
        if isinstance(scalars, DeviceVector):
            return self._cpu.upload(self.download(scalars, Form.MONTGOMERY), Form.MONTGOMERY)
        return scalars
