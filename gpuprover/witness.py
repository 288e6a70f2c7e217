"""Witness calculation: runs the WASM program that circom 2 makes of a circuit.

The program exports ``init``, ``setInputSignal`` and ``getWitness`` over one shared field
element, and imports four functions for errors and logs. A signal is named by the 64-bit
FNV-1a hash of its name. It computes as soon as its last input is set. Source: circom's
documentation, "Computing the witness", and the programs that circom 2.0 to 2.2 write.

The program is a stranger's: it gets no system interface, one memory and one small table, a stack of 1 MiB
and a bounded number of instructions; its memory and the witness share one limit. Of WebAssembly's proposals
only those are on that circom uses, and reference types, which wasmtime's binding cannot switch off; their
tables are bounded like any other.

A program can end its own run and nothing else. All but small ones are compiled by a process of their own
(:mod:`gpuprover.wasm_compiler`), once. It runs in this process, in a thread of its own: a helper process for
each run would double the time of a small proof or have to be kept, and the ways out that are known need none.
The four imported functions raise nothing and call the program no deeper than once: what goes wrong in them is
kept, and the program stopped through its epoch. (An exception in one would travel through a variable that
wasmtime shares among threads, to a run of somebody else; calls that come back in would end at the native
stack.) The thread's stack has room for the program's and the host's. What stays is trust in wasmtime: an
escape from its sandbox.

The program is driven by :mod:`gpuprover.witness_program`; :mod:`gpuprover.circuit_inputs` names its signals.

Inputs and witness are secret: no message holds a value, and what the circuit logs is dropped. Of a program's
own words only "Error in template NAME line: N" passes, where these words and NAME stand in the program's
file as a whole. A hostile program still chooses which of its names it tells, and numbers of up to six digits:
some hundred bits a run, as it could through its run time. Its author must be trusted that far.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from gpuprover import forks
from gpuprover.backend import Backend, Form
from gpuprover.circuit_inputs import kind_of, qualified
from gpuprover.curves import CurveParams
from gpuprover.errors import InvalidInput, MalformedFile, OutOfMemory, WitnessMismatch, about
from gpuprover.formats.files import Pathish, open_regular
from gpuprover.formats.r1cs import R1CS
from gpuprover.formats.wtns import Allocate, Witness, ordinary
from gpuprover.job import POLL_SECONDS, Job
from gpuprover.limbs import Words
from gpuprover.witness_program import MIB, Program

T = TypeVar("T")

_STACKS = threading.Lock()
"""The size of new threads' stacks is the process's: set for one start at a time."""


@forks.in_child
def _in_child() -> None:
    global _STACKS
    _STACKS = threading.Lock()


DEFAULT_FUEL = 10**11
"""WASM instructions, about: minutes of work; a million constraints take some 10^9."""
_THREAD_STACK = 8 << 20
_MAX_PROGRAM = 256 * MIB


@about("witness program")
def calculate_witness(
    wasm: Pathish,
    inputs: Mapping[str, Any],
    *,
    job: Job | None = None,
    fuel: int | None = None,
    memory_limit: int | None = None,
    allocate: Allocate = ordinary,
) -> tuple[CurveParams, Words]:
    """The witness of a circuit for given inputs, as ``snarkjs wtns calculate`` computes it.

    Args:
        wasm: path of the ``.wasm`` that circom 2 wrote.
        inputs: signal name -> value. A value is an integer, a decimal or 0x/0o/0b string of
            either sign, or arrays of those; arrays of any nesting are read row by row. Values are
            reduced into [0, r); negative ones count from r. Buses are mappings, or names
            with dots.
        job: cancellation and deadline; phases are the caller's.
        fuel: WASM instructions that may run, about; default :data:`DEFAULT_FUEL`.
        memory_limit: MiB for the program's memory and its witness; default: half of the machine's.
        allocate: where the values are written to; called in another thread.

    Returns:
        The curve whose scalar field the circuit is over, and canonical uint64[n_vars, limbs].

    Raises:
        InvalidInput: signals that are missing, unknown, of a wrong length or no integers, by name.
        UnsatisfiedWitness: an assertion or constraint of the circuit failed; with its place in the source.
        MalformedFile: no WASM, or not what circom makes.
        UnsupportedFile: made by circom 1, or for a prime that is none of our curves'.
        OutOfMemory: the memory limit is reached.
        Timeout: the fuel is spent, or the job's deadline reached.
        Cancelled: through the job.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidInput(f"circuit inputs: expected an object of signal names, found {kind_of(inputs)}")
    for name, limit in (("fuel", fuel), ("memory_limit", memory_limit)):
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise InvalidInput(f"{name}: expected a whole number of at least 1, found {limit!r}")
    job = job or Job()
    file, size = open_regular(wasm)
    with file:
        code = file.read(min(size, _MAX_PROGRAM) + 1)
    if len(code) > _MAX_PROGRAM:
        raise MalformedFile(wasm, "module", f"more than {_MAX_PROGRAM // MIB} MiB")
    program = Program(str(wasm), code, fuel or DEFAULT_FUEL, memory_limit, allocate)
    return _watched(job, program.interrupt, lambda: program.run(qualified("", inputs)))


def _watched(job: Job, interrupt: Callable[[], None], work: Callable[[], T]) -> T:
    """``work()`` in a thread of its own, while this one watches the job's cancellation and deadline.

    Compilation cannot be interrupted: the thread is then left to end by itself.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=target, name="gpuprover-witness", daemon=True)
    try:
        with _STACKS:
            before = threading.stack_size(_THREAD_STACK)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
    except RuntimeError:
        raise OutOfMemory("the machine refused a thread for the witness program") from None
    try:
        while thread.is_alive():
            job.check()
            thread.join(POLL_SECONDS)
    except BaseException:
        interrupt()
        thread.join(POLL_SECONDS)
        raise
    if failures:
        raise failures[0]
    return results[0]


def check_witness(r1cs: R1CS, witness: Witness, backend: Backend) -> int | None:
    """The first constraint that the witness does not satisfy, or None if it satisfies all.

    Raises:
        WitnessMismatch: another field, or another number of wires.
    """
    if witness.curve != r1cs.curve:
        raise WitnessMismatch(
            f"values over the scalar field of {witness.curve.name}, expected that of {r1cs.curve.name}",
            path=witness.source,
            role="witness",
            more=f"for {r1cs.source}",
        )
    if len(witness) != r1cs.n_wires:
        raise WitnessMismatch(
            f"{len(witness)} values, expected {r1cs.n_wires}, the wires",
            path=witness.source,
            role="witness",
            more=f"of {r1cs.source}",
        )
    if r1cs.n_constraints == 0:
        return None
    products = []
    for m in r1cs.matrices:
        single = np.zeros(m.nnz, dtype=np.uint32)
        matrix = backend.prepare_matrices(1, m.rows, single, m.row_index(), m.wires, m.values, Form.CANONICAL)
        products += backend.spmv(matrix, witness.values)
        backend.free(matrix)
    a, b, c = products
    difference = backend.multiply_subtract_in_place(a, b, c)
    wrong = backend.download(difference, Form.MONTGOMERY).any(axis=1)
    backend.free(a, b, c)
    return int(np.argmax(wrong)) if wrong.any() else None
