"""From a witness to the columns of its gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np

from gpuprover.backend import Backend, Term, Vector
from gpuprover.curves import CurveParams
from gpuprover.errors import InvalidInput, MalformedFile, ProofGenerationFailed, WitnessMismatch
from gpuprover.formats.wtns import Witness
from gpuprover.limbs import Words, ints_to_words, words_to_ints
from gpuprover.plonkish.key import Sizes, Wiring, addition_dtype
from gpuprover.polynomial import Direction, Domain

T = TypeVar("T")
R = TypeVar("R")

DRAWS = 3
"""Random blindings that one proof tries."""


def check_witness_fits(path: str, curve: CurveParams, n_vars: int, witness: Witness) -> None:
    """Raises WitnessMismatch if the witness is of another field or another number of wires than the key at
    ``path``."""
    if witness.curve != curve:
        raise WitnessMismatch(
            f"the witness is over {witness.curve.scalar.name}, the key over {curve.scalar.name}",
            path=witness.source,
            role="witness",
            more=f"({path})",
        )
    if len(witness) != n_vars:
        raise WitnessMismatch(
            f"{len(witness)} values, expected {n_vars} for the circuit",
            path=witness.source,
            role="witness",
            more=f"of {path}",
        )


def public_signals(n_public: int, witness: Witness) -> list[int]:
    """The witness's public signals, integers in [0, r)."""
    return words_to_ints(witness.values[1 : n_public + 1])


def check_blinding(blinding: object, count: int) -> tuple[int, ...]:
    """Fixed blinding as a caller gives it: so many integers. Raises InvalidInput."""
    if isinstance(blinding, tuple | list) and len(blinding) == count:
        values = tuple(blinding)
        if all(type(x) is int and x >= 0 for x in values):
            return values
    raise InvalidInput(f"blinding: expected {count} integers of at least 0")


class UselessChallenge(Exception):
    """The transcript has drawn a challenge for which nothing can be opened, such as a root of unity."""


def blinded(fixed: T | None, draw: Callable[[], T], rounds: Callable[[T], R]) -> R:
    """A proof under blinding that is fixed, or random: drawn anew where a challenge is useless.

    Odds of that are about n/r, below 2^-220 for each proof; another blinding leads to other challenges.

    Raises:
        InvalidInput: the fixed one leads to such a challenge.
        ProofGenerationFailed: so did :data:`DRAWS` random ones in a row.
    """
    for _ in range(DRAWS):
        try:
            return rounds(draw() if fixed is None else fixed)
        except UselessChallenge:
            if fixed is not None:
                raise InvalidInput("blinding: it leads to a challenge that is a root of unity") from None
    raise ProofGenerationFailed(f"the transcript drew {DRAWS} useless challenges in a row")


def columns(wiring: Wiring, w: Words, backend: Backend) -> list[Vector]:
    """The columns a, b, c on the domain's rows; rows without a gate are 0.

    Args:
        w: the witness, canonical uint64[n_vars, limbs].

    Raises:
        IndexError: an index of the wiring is out of range.
    """
    records, n = wiring.additions, wiring.sizes.domain_size
    signals = backend.signals(
        w[1:], records["left"], records["right"], records["left_factor"], records["right_factor"]
    )
    found = []
    for signals_of_gates in wiring.maps:
        column = backend.gather(signals, signals_of_gates)
        found.append(backend.combine([Term(column)], n))
        backend.free(column)
    backend.free(signals)
    return found


def short(backend: Backend, values: Sequence[int]) -> Vector:
    """A few integers, of any size and sign, as a vector."""
    r, limbs = backend.curve.r, backend.curve.scalar.limbs
    return backend.upload(ints_to_words([x % r for x in values], limbs))


def public_column(public: Sequence[int], backend: Backend) -> Vector:
    """The rows of public signals x: −x, as far as there are such rows."""
    return short(backend, [-x for x in public])


def constants(backend: Backend, domain: Domain, qc: Vector, public: Sequence[int]) -> Vector:
    """The coefficients of Qc with the public signals taken away: their rows have −x."""
    if not public:
        return backend.combine([Term(qc)])
    rows = public_column(public, backend)
    signals = backend.ntt(backend.combine([Term(rows)], domain.size), domain, Direction.INVERSE)
    found = backend.combine([Term(qc), Term(signals)])
    backend.free(rows, signals)
    return found


@contextmanager
def indices_of(path: str) -> Iterator[None]:
    """An index that is out of range by now is the fault of the key's file."""
    try:
        yield
    except IndexError:
        raise MalformedFile(
            path,
            "sections 3 to 6 (additions and wires)",
            "a signal is out of range by now: the file has been written to since it was loaded",
        ) from None


def hollow_wiring(curve: CurveParams, sizes: Sizes) -> Wiring:
    """A wiring of these sizes for a backend that only counts: all elements of an array lie at one place."""
    records = np.broadcast_to(np.zeros((), dtype=addition_dtype(curve)), sizes.additions)
    signals = np.broadcast_to(np.uint32(0), sizes.gates)
    return Wiring(sizes, records, (signals, signals, signals), 2, 3)


def hollow(count: int, words: int) -> Words:
    """Words of so many elements or points, all at one place."""
    return np.broadcast_to(np.uint64(0), (count, words))
