"""Checks of a key before a proof that nobody verifies, and of a proof, with the reason why it is wrong."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from gpuprover.backend import Backend
from gpuprover.curves import Group
from gpuprover.errors import MalformedFile
from gpuprover.formats.wtns import Witness
from gpuprover.limbs import Words
from gpuprover.plonkish.diagnosis import raise_why
from gpuprover.plonkish.key import Wiring


class Key(Protocol):
    """A proving key of PLONK's or FFLONK's; see their ``key`` modules."""

    @property
    def path(self) -> str: ...
    @property
    def wiring(self) -> Wiring: ...
    @property
    def polynomials(self) -> Mapping[str, Words]: ...
    @property
    def vk(self) -> Any: ...
    def check_header_points(self, backend: Backend) -> None: ...
    def check_points(self, backend: Backend) -> None: ...


class Points(Protocol):
    """A proof: its points of G1, uint64[n, g1_words]."""

    @property
    def points(self) -> Words: ...


Proof = TypeVar("Proof", bound=Points)

_sound: set[int] = set()
"""``id`` of the keys that live and of which every point has been looked at."""


def check_header(key: Key, backend: Backend) -> None:
    """Raises MalformedFile for a point of the key's header outside its subgroup."""
    key.check_header_points(backend)


def check_key_once(key: Key, backend: Backend) -> None:
    """Every point of the key, when the key is first seen: what a proof that nobody verifies has to rest on.

    Raises:
        MalformedFile: a point is bad; names the section and the point.
    """
    if id(key) not in _sound:
        with backend.job.phase("check key"):
            key.check_points(backend)
        weakref.finalize(key, _sound.discard, id(key))
        _sound.add(id(key))


def in_subgroups(key: Key, proof: Proof, backend: Backend) -> Proof:
    """The proof, if its points are in their subgroup, as all are that come of a key with such points.

    Raises:
        MalformedFile: they are not, so that the key has changed since its points were looked at.
    """
    if backend.points.first_bad_point(Group.G1, proof.points) >= 0:
        raise MalformedFile(
            key.path, "points", "they have changed since they were checked; no proof was made"
        )
    return proof


def checked(
    verify: Callable[[Any, Sequence[int], Proof, Backend], bool],
    key: Key,
    witness: Witness,
    public: Sequence[int],
    proof: Proof,
    backend: Backend,
) -> Proof:
    """The proof, if it verifies for these public signals; otherwise the reason as an exception.

    Raises:
        MalformedFile: a point of the key is bad; names the section and the point. Or its parts do not belong
            together.
        UnsatisfiedWitness: names the gate that the witness breaks.
    """
    with backend.job.phase("verify"):
        try:
            if verify(key.vk, public, proof, backend):
                return proof
        except MalformedFile:
            pass  # a bad point in the key made a bad point in the proof: find it
    with backend.job.phase("check key"):
        key.check_points(backend)
    raise_why(key.path, key.wiring, key.polynomials, witness, public, backend)
