"""Midnight's proving keys: a ``.prover`` file, and the parameters for its number of rows.

The file has the circuit, so that its architecture and its number of public inputs follow from it; a
``.verifier`` file beside it is the verification key, to the byte, and nothing more is asked of it. The
parameters are read once a process, however many keys want them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from gpuprover import forks
from gpuprover.backend import Backend, Form
from gpuprover.curves import BLS12_381, CurveParams, Group
from gpuprover.demand import Demand
from gpuprover.devices import open_backend
from gpuprover.errors import MalformedFile, about
from gpuprover.formats.binfile import Source, open_mapped
from gpuprover.formats.files import Pathish
from gpuprover.job import Job
from gpuprover.limbs import Words
from gpuprover.midnight.circuit.synthesis import layout_of
from gpuprover.midnight.circuit.table import Layout
from gpuprover.midnight.constraint_system import domain
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.files import architecture_of, n_public, read_circuit
from gpuprover.midnight.keys import ProverKey, VerifierKey, read_prover_key, read_verifier_key
from gpuprover.midnight.srs import Srs, find_srs
from gpuprover.polynomial import Direction
from gpuprover.systems.midnight import prover
from gpuprover.systems.midnight.documents import NAME, VerificationKey

PREFIX = b"midnight:prover-key["
"""What the files begin with."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """Parameters as proofs take them.

    Attributes:
        srs: the file's content.
        suffixes: Σ lagrange[j] over j >= i, uint64[n, g1_words].
    """

    srs: Srs
    suffixes: Words = field(repr=False)


_parameters: dict[tuple[int, str], Parameters] = {}
_guard = Lock()


@forks.in_child
def _in_child() -> None:
    global _guard
    _guard = Lock()


def parameters_for(k: int, folder: Pathish | None = None) -> Parameters:
    """The parameters of 2^k rows, see :func:`gpuprover.midnight.srs.find_srs`; kept.

    Raises:
        InvalidInput: there are none; the message names the file that is missing.
        MalformedFile: they are damaged.
    """
    name = k, str(folder or "")
    with _guard:
        if name not in _parameters:
            srs = find_srs(k, folder)
            suffixes = _cpu().points.suffix_sums(srs.lagrange)
            _parameters[name] = Parameters(srs, suffixes)
        return _parameters[name]


def _cpu() -> Backend:
    return open_backend("cpu", BLS12_381, Job(threads=1))


@dataclass(frozen=True, eq=False)
class ProvingKey:
    """A proving key with its parameters.

    Attributes:
        path: where it came from, for messages.
        key: the file's content.
        circuit: the circuit in it.
        vk: the verification key that follows.
        parameters: those of its number of rows.
        file_size: bytes of the file.
    """

    path: str
    key: ProverKey
    circuit: Circuit
    vk: VerificationKey
    parameters: Parameters
    file_size: int

    @property
    def protocol(self) -> str:
        return NAME

    @property
    def curve(self) -> CurveParams:
        return BLS12_381

    @property
    def constraints(self) -> int:
        """Rows of the circuit's table."""
        return 1 << self.key.k

    @property
    def n_public(self) -> int:
        return self.vk.n_public

    @property
    def n_vars(self) -> int:
        """Values of an advice table."""
        return self.vk.argument.system.advice << self.key.k

    @property
    def size(self) -> int:
        """Bytes in memory: what the file says, and what proofs take of it in other forms."""
        columns = (len(self.key.fixed) + len(self.key.permutation)) * (
            8 * self.curve.scalar.limbs << self.key.k
        )
        kept = prover.kept_bytes(self.vk) if prover.is_kept(self.vk) else 0
        return self.file_size + 2 * columns + kept

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.vk.warnings

    @property
    def verification_key(self) -> dict[str, Any]:
        return self.vk.document

    @cached_property
    def layout(self) -> Layout:
        """Where the circuit's values stand in its table."""
        return layout_of(self.circuit, self.key.k, self.key.max_bit_len)

    @cached_property
    def demand(self) -> Demand:
        return prover.demand(self.vk)

    @cached_property
    def parts(self) -> prover.Parts:
        """What a device works with: polynomials of the columns, too, and their values on the cosets."""
        shape, backend = self.vk.argument, _cpu()
        columns = np.concatenate([self.key.fixed, self.key.permutation])
        values = dict(zip((*shape.fixed, *shape.sigma), columns, strict=True))
        rows = domain(self.key.k)
        coefficients: dict[str, Words] = {}
        for name, words in values.items():
            v = backend.ntt(backend.upload(words, Form.MONTGOMERY), rows, Direction.INVERSE)
            coefficients[name] = backend.download(v, Form.MONTGOMERY)
        extended: Sequence[Mapping[str, Words]] = ()
        if prover.is_kept(self.vk):
            extended = prover.extended(self.vk, coefficients, backend)
        srs = self.parameters.srs
        return prover.Parts(
            self.vk, values, coefficients, srs.lagrange, self.parameters.suffixes, srs.powers, extended
        )

    def check_header_points(self, backend: Backend) -> None:
        """Raises MalformedFile if a commitment is outside its subgroup."""
        for name, points in (
            ("fixed columns", self.key.fixed_commitments),
            ("permutation", self.key.permutation_commitments),
        ):
            self._check(name, points, backend)

    def check_points(self, backend: Backend) -> None:
        """Every point that proofs are made of. Raises MalformedFile naming the culprit."""
        self.check_header_points(backend)
        srs = self.parameters.srs
        for name, points in (("powers of s", srs.powers), ("Lagrange points", srs.lagrange)):
            self._check(name, points, backend, srs.path)

    def _check(self, name: str, points: Words, backend: Backend, path: str = "") -> None:
        bad = backend.points.first_bad_point(Group.G1, points)
        if bad >= 0:
            problem = f"point {bad} is off the curve, outside the subgroup or out of range"
            raise MalformedFile(path or self.path, name, problem, role="key")


@about("key")
def load_key(source: Source, folder: Pathish | None = None) -> ProvingKey:
    """A prover key's file, checked, and the parameters for it.

    Args:
        folder: where the parameters are; by default where the network's programs keep them.

    Raises:
        InvalidInput: a file cannot be opened, or parameters are missing.
        MalformedFile, UnsupportedFile: what is wrong in the file; names the field.
    """
    path, content = open_mapped(source, ".prover")
    data = memoryview(content.data)
    key = read_prover_key(data, path)
    circuit = read_circuit(key.circuit, path)
    parameters = parameters_for(key.k, folder)
    verifier = VerifierKey(
        key.profile,
        architecture_of(circuit),
        key.max_bit_len,
        n_public(circuit),
        key.k,
        key.fixed_commitments,
        key.permutation_commitments,
        path,
    )
    vk = VerificationKey(verifier, parameters.srs.s_g2)
    _check_columns(vk, path)
    return ProvingKey(path, key, circuit, vk, parameters, len(data))


def _check_columns(vk: VerificationKey, path: str) -> None:
    """Whether a key has as many columns as its architecture. Raises MalformedFile."""
    system, key = vk.argument.system, vk.key
    for name, found, expected in (
        ("fixed columns", len(key.fixed), system.fixed),
        ("permutation", len(key.permutation), len(system.permutation)),
    ):
        if found != expected:
            raise MalformedFile(path, name, f"expected {expected} for the circuit's chips, found {found}")
    if key.n_public > system.usable(key.k):
        raise MalformedFile(
            path, "public inputs", f"expected at most {system.usable(key.k)} on 2^{key.k} rows"
        )


@about("key")
def read_verification_key(source: Source, folder: Pathish | None = None) -> VerificationKey:
    """The verification key of a prover or a verifier key's file.

    Args:
        folder: parameters other than the network's, see :func:`load_key`.

    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: as :func:`load_key`.
    """
    path, content = open_mapped(source, ".prover")
    data = memoryview(content.data)
    if bytes(data[: len(PREFIX)]) == PREFIX:
        return load_key(source, folder).vk
    verifier = read_verifier_key(data, path)
    vk = (
        VerificationKey(verifier)
        if folder is None
        else VerificationKey(verifier, parameters_for(verifier.k, folder).srs.s_g2)
    )
    _check_columns(vk, path)
    return vk


def read_curve(source: Source) -> CurveParams:
    """All are over one curve."""
    return BLS12_381
