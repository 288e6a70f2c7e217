"""The witness of a proof: public inputs and an advice table, made of a preimage by running the circuit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gpuprover.curves import BLS12_381
from gpuprover.errors import WitnessMismatch
from gpuprover.formats.wtns import Allocate
from gpuprover.job import Job
from gpuprover.limbs import Words
from gpuprover.midnight.advice import AdviceSource
from gpuprover.midnight.circuit.table import Layout, advice
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.run import run
from gpuprover.midnight.preimage import read_preimage
from gpuprover.witness_source import WitnessSource

MAX_PREIMAGE = 16 << 20
"""Bytes. The network's are some hundred."""


@dataclass(frozen=True, eq=False)
class Statement:
    """What is proved, and why it holds. Secret.

    Attributes:
        public: the public inputs.
        advice: uint64[columns, n, 4], canonical; rows that are blinded are not looked at.
        source: where it came from, for messages.
    """

    public: Sequence[int]
    advice: Words = field(repr=False)
    source: str = "<witness>"

    @property
    def nbytes(self) -> int:
        return self.advice.nbytes


class _Key(Protocol):
    """What of a key is needed here."""

    @property
    def circuit(self) -> Circuit: ...
    @property
    def layout(self) -> Layout: ...
    @property
    def n_public(self) -> int: ...


def read_witness(
    key: _Key, source: WitnessSource, job: Job, memory_limit: int | None, allocate: Allocate
) -> Statement:
    """A preimage's file or its bytes, run on the key's circuit and laid out; or an advice table.

    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: it is no preimage.
        UnsatisfiedWitness: the circuit does not accept it; says which instruction.
    """
    if isinstance(source, AdviceSource):
        return Statement(tuple(source.public), source.advice.columns, source.advice.source)
    content, name = source.content_of(MAX_PREIMAGE, job)
    preimage = read_preimage(content, name)
    with job.phase("check"):
        execution = run(key.circuit, preimage)
    with job.phase("synthesis"):
        return Statement(tuple(execution.public_inputs), advice(key.layout, execution.inputs), name)


def check_statement(key: _Key, statement: Statement, columns: int, rows: int) -> None:
    """The table's shape and the number of public inputs. Raises WitnessMismatch."""
    if statement.advice.shape != (columns, rows, BLS12_381.scalar.limbs):
        raise WitnessMismatch(
            f"expected {columns} columns of {rows} rows, found {statement.advice.shape[0]} of "
            f"{statement.advice.shape[1]}",
            path=statement.source,
            role="witness",
        )
    if len(statement.public) != key.n_public:
        raise WitnessMismatch(
            f"expected {key.n_public} public inputs, found {len(statement.public)}",
            path=statement.source,
            role="witness",
        )
