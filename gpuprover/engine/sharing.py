"""One proof for equal witnesses: proofs that are kept, and proofs in the making that several jobs share.

Who asks for a proof that is being made for another one waits for that one's, and gets a copy of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Generic, TypeVar

from gpuprover.caching import Cache, keyed_digest
from gpuprover.executor import KeyInfo
from gpuprover.proving import ProofResult

T = TypeVar("T")
"""A job that asks for a proof; compared and hashed by identity."""


def proof_name(info: KeyInfo, content: bytes) -> bytes:
    """The name under which a proof is kept and shared: digest of key, file's identity and witness.

    Args:
        content: a keyed digest of the witness.
    """
    return keyed_digest(info.digest, repr(info.identity), content)


class SharedProofs(Generic[T]):
    """Proofs by name: those that are kept, and who makes or waits for those that are not there yet.

    Not for several threads at once, but for ``kept``: its owner has the lock.

    Args:
        capacity: bytes that kept proofs may take; 0 keeps none.
        lifetime: seconds that a proof is kept.
        clock: seconds that never go backwards.

    Attributes:
        kept: the proofs that are kept; for any thread.
    """

    def __init__(self, capacity: int, lifetime: float, clock: Callable[[], float]) -> None:
        self.kept: Cache[bytes, ProofResult] = Cache(capacity, lifetime=lifetime, clock=clock)
        self._makers: dict[bytes, T] = {}
        self._names: dict[T, bytes] = {}
        self._sharers: dict[T, list[T]] = {}
        self._shares: dict[T, T] = {}

    def __len__(self) -> int:
        """Proofs that are being made, and askers that wait for them."""
        return len(self._makers) + len(self._shares)

    def find(self, name: bytes) -> ProofResult | None:
        """A copy of the proof that is kept under a name."""
        return copy.deepcopy(self.kept.get(name))

    def join(self, name: bytes, who: T) -> bool:
        """Whether ``who`` shares a proof that is being made now; else it is ``who`` that makes it."""
        maker = self._makers.setdefault(name, who)
        if maker is who:
            self._names[who], self._sharers[who] = name, []
            return False
        self._sharers[maker].append(who)
        self._shares[who] = maker
        return True

    def makes(self, who: T) -> bool:
        """Whether others would share the proof that ``who`` is to get."""
        return who in self._names

    def waits(self, who: T) -> bool:
        """Whether ``who`` waits for a proof that is made for another one."""
        return who in self._shares

    def leave(self, who: T) -> None:
        """Has ``who`` wait no more, if it does."""
        maker = self._shares.pop(who, None)
        if maker is not None:
            self._sharers[maker].remove(who)

    def end(self, who: T) -> list[T]:
        """Those who shared what ``who`` was to make; they wait no more. Empty if it made nothing."""
        name = self._names.pop(who, None)
        if name is None:
            return []
        del self._makers[name]
        sharers = self._sharers.pop(who)
        for sharer in sharers:
            del self._shares[sharer]
        return sharers

    def keep(self, name: bytes, result: ProofResult) -> None:
        """Keeps a copy of a proof, if there is room for it."""
        self.kept.put(name, copy.deepcopy(result), _size(result))


def _size(result: ProofResult) -> int:
    """Bytes that a kept proof takes, about."""
    return 4096 + sum(len(signal) + 64 for signal in result.public_signals)
