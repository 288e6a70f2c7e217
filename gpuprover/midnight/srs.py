"""The parameters that all circuits share: powers of a secret s as points, and their Lagrange form.

A file ``bls_midnight_2pK`` has 2^K powers of s in G1, the Lagrange polynomials of 2^K rows at s in G1, and
the generator and s·G2. Their SHA-256 are published for K up to 25. From larger parameters smaller ones follow
exactly: the first powers, and their inverse Fourier transform. Nothing here fetches a file.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path

import numpy as np

from gpuprover import devices
from gpuprover.backend import Form, Term
from gpuprover.caching import Cache
from gpuprover.curves import BLS12_381, Group
from gpuprover.errors import InsecureKeyWarning, InvalidInput, MalformedFile, about
from gpuprover.formats.files import (
    Identity,
    Pathish,
    as_path,
    identity_of,
    open_regular,
    os_problem,
    write_atomic,
)
from gpuprover.formats.points import checked_point
from gpuprover.job import Job
from gpuprover.limbs import Words, generator, points_to_words, words_to_points
from gpuprover.midnight.constraint_system import domain
from gpuprover.midnight.encoding import Buffer
from gpuprover.midnight.points import (
    COORDINATE_BYTES,
    G1_BYTES,
    G2_BYTES,
    BadPoint,
    read_points,
    write_points,
)

NAME = "bls_midnight_2p"
"""The files' names, before K."""
FOLDER_VARIABLE = "MIDNIGHT_PP"
"""The environment variable that names the folder of parameters."""
MAX_K = 25
KEPT_BYTES = 64 << 20
"""Bytes of parameters that were made from larger ones and are kept, for they take seconds to make."""
_HEAD = 4
_ROLE = "parameters"
_r = BLS12_381.r


@dataclass(frozen=True, eq=False)
class Srs:
    """Parameters for tables of 2^k rows.

    Attributes:
        k: the logarithm of the number of rows.
        powers: s^i·G1, uint64[2^k, g1_words].
        lagrange: L_i(s)·G1, uint64[2^k, g1_words].
        g2: the generator of G2, uint64[g2_words].
        s_g2: s·G2, uint64[g2_words].
        path: the file's name for messages.
        published: whether they are the network's, by their SHA-256 or as what follows from such a file.
    """

    k: int
    powers: Words = field(repr=False)
    lagrange: Words = field(repr=False)
    g2: Words = field(repr=False)
    s_g2: Words = field(repr=False)
    path: str
    published: bool = False


# Points of G2 ----------------------------------------------------------------------------------


def g2_from_bytes(data: Buffer) -> Words:
    """An uncompressed point of G2, not infinity -> uint64[g2_words], on its curve.

    Raises:
        ValueError: it is none, in a few words that say why.
    """
    if len(data) != G2_BYTES:
        raise ValueError(f"expected {G2_BYTES} bytes, found {len(data)}")
    size = COORDINATE_BYTES
    x1, x0, y1, y0 = (int.from_bytes(data[i : i + size], "big") for i in range(0, G2_BYTES, size))
    if max(x0, x1, y0, y1) >= BLS12_381.q:
        raise ValueError(f"a coordinate is not below the base prime of {BLS12_381.name}")
    words = points_to_words(BLS12_381, Group.G2, [((x0, x1), (y0, y1))])
    return checked_point(BLS12_381, Group.G2, words, infinity="which no parameters have")


def g2_to_bytes(point: Words) -> bytes:
    """Inverse of :func:`g2_from_bytes`."""
    (affine,) = words_to_points(BLS12_381, Group.G2, point.reshape(1, -1))
    flat = BLS12_381.group(Group.G2).coordinates(affine)
    return b"".join(flat[i].to_bytes(COORDINATE_BYTES, "big") for i in (1, 0, 3, 2))


S_G2 = g2_from_bytes(
    bytes.fromhex(
        "04bbe1a24fcc4f988c6ef268d0c1160eac0a0c4f53d80bd74f3d2e4667be27408625a83825354e27c70859883102eb43"
        "07acb569b3187c0fd1993980aa52a6e9e2080b9697fab96abd5c5f1c3b988256f2d99366f1bbccf13cf0e20702fee18c"
        "0f08179604abe8c1820bbed11127408dcb5072adcab85774a32d518b682350b06a22a87bf17887732a0af45ddfccbff8"
        "10e1b221e2a5911d6f9683a36f4e7fe7d44281de86a186cc106c3336f58fece01e766dc4147d38e31936105a4944cb59"
    )
)
"""s·G2 of the network's parameters, uint64[g2_words], read-only."""
S_G2.flags.writeable = False


# Files -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def published_hashes() -> Mapping[str, str]:
    """SHA-256 in hex of the network's parameters, by the files' names."""
    text = files("gpuprover.midnight").joinpath("srs-sha256.txt").read_text("ascii")
    return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def file_name(k: int) -> str:
    """The name of the file for 2^k rows."""
    return f"{NAME}{k}"


def file_bytes(k: int) -> int:
    """The size of the file for 2^k rows."""
    return _HEAD + 2 * G1_BYTES * (1 << k) + 2 * G2_BYTES


@about(_ROLE)
def read_srs(path: Pathish) -> Srs:
    """Parameters from their file. Points are on their curves; their subgroups are not looked at.

    Raises:
        InvalidInput: the file cannot be read.
        MalformedFile: its size or a point is wrong.
    """
    data = _content(path)
    return parse_srs(data, str(path))


@about(_ROLE)
def parse_srs(data: Buffer, path: str = "parameters") -> Srs:
    """Parameters from a file's bytes; see :func:`read_srs`.

    Raises:
        MalformedFile: the size or a point is wrong.
    """
    k = _log_rows(data, path)
    digest = hashlib.sha256(data).hexdigest()
    view, middle = memoryview(data), _HEAD + G1_BYTES * (1 << k)
    end = len(data) - 2 * G2_BYTES
    parts = []
    for name, start, stop in (("powers", _HEAD, middle), ("Lagrange points", middle, end)):
        try:
            parts.append(read_points(Group.G1, view[start:stop]))
        except BadPoint as error:
            raise MalformedFile(path, name, f"point {error.index}: {error}") from None
    if not np.array_equal(parts[0][0], generator(BLS12_381, Group.G1)):
        raise MalformedFile(path, "powers", "point 0 is not the generator")
    pair = []
    for name, start in (("generator of G2", end), ("s·G2", end + G2_BYTES)):
        try:
            pair.append(g2_from_bytes(view[start : start + G2_BYTES]))
        except ValueError as error:
            raise MalformedFile(path, name, str(error)) from None
    if not np.array_equal(pair[0], generator(BLS12_381, Group.G2)):
        raise MalformedFile(path, "generator of G2", "another point")
    published = digest == published_hashes().get(file_name(k))
    return Srs(k, parts[0], parts[1], pair[0], pair[1], path, published)


def srs_bytes(srs: Srs) -> bytes:
    """The content of the file of parameters."""
    points = (write_points(Group.G1, part) for part in (srs.powers, srs.lagrange))
    return b"".join([struct.pack("<I", srs.k), *points, g2_to_bytes(srs.g2), g2_to_bytes(srs.s_g2)])


def write_srs(srs: Srs, path: Pathish) -> None:
    """Writes the file of parameters. Raises InvalidInput where it cannot be written."""
    content = srs_bytes(srs)
    with write_atomic(path) as file:
        file.write(content)


@about(_ROLE)
def check_srs(path: Pathish) -> int:
    """Whether a file is the network's, by its SHA-256 -> its k.

    Raises:
        InvalidInput: the file cannot be read.
        MalformedFile: it is another one.
    """
    data = _content(path)
    k = _log_rows(data, str(path))
    found, expected = hashlib.sha256(data).hexdigest(), published_hashes()[file_name(k)]
    if found != expected:
        raise MalformedFile(
            path, "SHA-256", f"expected {expected}, which is published for {file_name(k)}, found {found}"
        )
    return k


def _content(path: Pathish) -> bytes:
    file, size = open_regular(path)
    with file:
        if size > file_bytes(MAX_K):
            raise MalformedFile(path, "size", f"expected at most {file_bytes(MAX_K)} bytes, found {size}")
        try:
            return file.read()
        except OSError as error:
            raise os_problem(path, error, "read") from None


def _log_rows(data: Buffer, path: str) -> int:
    if len(data) < _HEAD:
        raise MalformedFile(path, "k", f"expected {_HEAD} bytes, found {len(data)}")
    k = int.from_bytes(data[:_HEAD], "little")
    if k > MAX_K:
        raise MalformedFile(path, "k", f"expected at most {MAX_K}, found {k}, at byte 0")
    if len(data) != file_bytes(k):
        raise MalformedFile(path, "size", f"expected {file_bytes(k)} bytes for k = {k}, found {len(data)}")
    return k


# Where they are --------------------------------------------------------------------------------


def srs_folder(directory: Pathish | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of parameters: the given one, else ``MIDNIGHT_PP``, else ``midnight/zk-params`` in
    ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if directory is not None:
        return as_path(directory, "folder of parameters")
    named = environment.get(FOLDER_VARIABLE)
    if named:
        return as_path(named, FOLDER_VARIABLE)
    base = environment.get("XDG_CACHE_HOME")
    cache = Path(base) if base else Path(environment.get("HOME") or os.path.expanduser("~")) / ".cache"
    return cache / "midnight" / "zk-params"


@about(_ROLE)
def find_srs(
    k: int,
    directory: Pathish | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    job: Job | None = None,
) -> Srs:
    """Parameters for 2^k rows from a folder: of just this size, or made in memory from larger ones there.

    Args:
        directory: see :func:`srs_folder`.
        job: the limits of the computation.

    Raises:
        InvalidInput: neither is there; the message names the file and its SHA-256.
        MalformedFile: a file is damaged.
    """
    folder = srs_folder(directory, environment)
    exact = folder / file_name(k)
    if exact.exists():
        srs = read_srs(exact)
        if srs.k != k:
            raise MalformedFile(exact, "k", f"expected {k} by the file's name, found {srs.k}")
        return srs
    for larger in range(k + 1, MAX_K + 1):
        path = folder / file_name(larger)
        if path.exists():
            key = str(path), identity_of(path), k
            return _made.get_or_make(key, partial(_smaller_of, path, k, job), _bytes)
    raise InvalidInput(missing_message(k), path=folder, role=_ROLE)


def _smaller_of(path: Path, k: int, job: Job | None) -> Srs:
    return smaller(read_srs(path), k, job)


def _bytes(srs: Srs) -> int:
    return srs.powers.nbytes + srs.lagrange.nbytes


_made: Cache[tuple[str, Identity, int], Srs] = Cache(KEPT_BYTES)
"""(path of larger ones, which file that was, k) -> parameters made from them."""


def missing_message(k: int) -> str:
    """What is missing where there are no parameters for 2^k rows."""
    name = file_name(k)
    digest = published_hashes().get(name)
    if digest is None:
        return f"no {name}: there are parameters for k up to {MAX_K}"
    return f"no {name} (SHA-256 {digest}, {file_bytes(k)} bytes), and no larger parameters"


# Smaller and other ones ------------------------------------------------------------------------


def smaller(srs: Srs, k: int, job: Job | None = None) -> Srs:
    """Parameters for 2^k rows out of larger ones.

    Raises:
        InvalidInput: k is not smaller.
    """
    if not 0 <= k < srs.k:
        raise InvalidInput(
            f"expected k from 0 to {srs.k - 1}, found {k}: parameters can only become smaller", path=srs.path
        )
    powers = srs.powers[: 1 << k].copy()
    return Srs(k, powers, lagrange_points(powers, job), srs.g2, srs.s_g2, srs.path, srs.published)


def downsize(path: Pathish, k: int, target: Pathish, job: Job | None = None) -> None:
    """Writes the parameters for 2^k rows that follow from a file of larger ones, byte for byte as published.

    Raises:
        InvalidInput: k is not smaller, or a file cannot be read or written.
        MalformedFile: the larger ones are damaged.
    """
    srs = smaller(read_srs(path), k, job)
    content = srs_bytes(srs)
    if srs.published and hashlib.sha256(content).hexdigest() != published_hashes()[file_name(k)]:
        raise AssertionError("smaller parameters differ from the published ones")
    with write_atomic(target) as file:
        file.write(content)


def lagrange_points(powers: Words, job: Job | None = None) -> Words:
    """The inverse Fourier transform of points, uint64[2^k, g1_words]: of powers of s, their Lagrange form."""
    n = len(powers)
    root = pow(domain(n.bit_length() - 1).omega, -1, _r)
    return devices.transform_points(BLS12_381, powers, root, pow(n, -1, _r), job or Job())


def insecure_srs(k: int, secret: int | None = None, job: Job | None = None) -> Srs:
    """Parameters for 2^k rows from a secret of this process, for tests and benchmarks.

    Whoever knows s can prove anything: a warning says so.

    Args:
        secret: s; default: drawn from the operating system and forgotten.

    Raises:
        InvalidInput: s is 0 or a root of unity modulo r, or k is out of range.
    """
    if not 0 <= k <= MAX_K:
        raise InvalidInput(f"expected k from 0 to {MAX_K}, found {k}")
    s = 1 + secrets.randbelow(_r - 1) if secret is None else secret % _r
    n, omega = 1 << k, domain(k).omega
    vanishing = (pow(s, n, _r) - 1) % _r
    if not s or not vanishing:
        raise InvalidInput("the secret is 0 or a root of unity")
    warnings.warn(
        f"parameters for k = {k} from a secret of this process: proofs with them prove nothing to others",
        InsecureKeyWarning,
        stacklevel=2,
    )
    backend = devices.open_backend("cpu", BLS12_381, job or Job())
    # L_i(s) = (s^n − 1)/n · 1/(s·ω^(−i) − 1)
    down, ones = backend.powers(n, pow(omega, -1, _r)), backend.powers(n, 1)
    inverses = backend.batch_inverse(backend.combine([Term(down, s), Term(ones, -1)]))
    lagrange = backend.combine([Term(inverses, vanishing * pow(n, -1, _r) % _r)])
    g1 = generator(BLS12_381, Group.G1)
    parts = [
        backend.fixed_base_mul(Group.G1, g1, backend.download(v, Form.CANONICAL))
        for v in (backend.powers(n, s), lagrange)
    ]
    g2 = generator(BLS12_381, Group.G2)
    s_g2 = backend.points.linear_combination(Group.G2, g2[None], [s])
    return Srs(k, parts[0], parts[1], g2, s_g2, "insecure parameters")


def is_srs_name(name: str) -> bool:
    """Whether a file's name is one of parameters."""
    return re.fullmatch(NAME + r"\d+", name) is not None
