"""Circuits of a folder, by name.

A circuit ``NAME`` is ``NAME.zkey``, with ``NAME.wasm`` and ``NAME.vkey.json`` beside it if there are any; or
the same files in a folder ``NAME/``, called ``NAME.*`` or ``circuit.*``. Without a key it can only verify.
Proof systems whose keys are other files have other endings (:func:`gpuprover.systems.system.key_files`).

A name is a word of ASCII letters, digits, ``_``, ``-`` and single dots: one component of a path, so that
whoever chooses names cannot leave the folder. Symbolic links are followed, as mounted volumes are made of
them: the folder is its owner's, and a link that points elsewhere now is a changed file.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuprover.curves import CurveParams
from gpuprover.errors import CircuitNotFound, InvalidInput, MalformedFile, ProverError, about
from gpuprover.formats.files import Identity, Pathish, as_path, identity_of, os_problem
from gpuprover.formats.json_files import read_json
from gpuprover.systems.system import (
    ZKEY,
    KeyFile,
    VerificationKey,
    key_files,
    parse_verification_key,
    read_verification_key,
)

log = logging.getLogger("gpuprover.engine")

PROGRAM = ".wasm"
MAX_SHOWN = 8

_NAME = re.compile(r"[A-Za-z0-9_]+([.-]+[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class CircuitFiles:
    """The paths of a circuit's files; None for those that it lacks, but never both keys."""

    name: str
    key: str | None
    wasm: str | None
    vkey: str | None


@dataclass(frozen=True)
class KnownKey:
    """What is known of a verification key.

    Attributes:
        protocol: the proof system's name.
        curve: the curve's name in documents, see :func:`curve_label`.
        n_public: the number of public signals.
        document: the document that a verifier reads, without what no verifier needs.
        digest: SHA-256 in hex of the key's values.
        warnings: sentences that whoever trusts the key has to read.
    """

    protocol: str
    curve: str
    n_public: int
    document: dict[str, Any]
    digest: str
    warnings: tuple[str, ...]


class CircuitDirectory:
    """The circuits of a folder, looked up anew at each use. For any thread.

    Args:
        folder: None for one that has no circuits.
    """

    def __init__(self, folder: Pathish | None) -> None:
        # Absolute: paths go to other processes, and the current folder may change.
        self._folder = None if folder is None else Path(os.path.abspath(as_path(folder, "circuit_keys_path")))
        self._unlisted: tuple[Path, ...] = ()
        self._lock = threading.Lock()
        self._keys: dict[str, tuple[CircuitFiles, tuple[Identity, ...], KnownKey]] = {}

    def look_in(self, folder: Path) -> None:
        """Finds circuits of another folder, too, by names that it does not list."""
        self._unlisted += (Path(os.path.abspath(folder)),)

    def names(self) -> list[str]:
        """The circuits that are there now, sorted; one that is there twice, and cannot be used so, too.

        Raises:
            CircuitNotFound: the folder cannot be read.
        """
        if self._folder is None:
            return []
        try:
            entries = sorted(os.listdir(self._folder))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                # The circuits are there all the same.
                raise os_problem(self._folder, error, "read the folder of circuits") from None
            raise CircuitNotFound(
                f"cannot read the folder of circuits: {error.strerror}", path=self._folder, role="circuits"
            ) from None
        found = {self._name_of(entry) for entry in entries} - {None}
        return sorted(name for name in found if name and self._found(name))

    def has(self, name: str) -> bool:
        """Whether :meth:`names` would have it, looked up by itself; False too where the folder cannot be
        read."""
        try:
            return isinstance(name, str) and _is_name(name) and bool(self._found(name))
        except OSError:
            return False

    def _name_of(self, entry: str) -> str | None:
        for kind in key_files():
            for suffix in (kind.suffix, kind.verification_suffix):
                if entry.endswith(suffix):
                    stem = entry.removesuffix(suffix)
                    return stem if _is_name(stem) else None
        return entry if _is_name(entry) else None

    def find(self, name: str) -> CircuitFiles:
        """A circuit's files.

        Raises:
            CircuitNotFound: there is none of that name; the message says where, and what there is.
            InvalidInput: it is there twice.
        """
        if not isinstance(name, str):
            raise InvalidInput(f"circuit: expected a name, found {type(name).__name__}")
        files = self._files(name) if _is_name(name) else None
        if files is None:
            raise CircuitNotFound(f"circuit {name[:80]!r}: there is none of that name", more=self._where())
        return files

    def _where(self) -> str:
        if self._folder is None:
            return "as no folder of circuits is set (circuit_keys_path, PROVER_CIRCUIT_KEYS_PATH)"
        names = self.names()
        more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
        there = ", ".join(names[:MAX_SHOWN]) + more if names else f"no {ZKEY.suffix} at all"
        return f"in {self._folder}, where there is {there}"

    def _found(self, name: str) -> list[CircuitFiles]:
        """Everything that is called so."""
        own = [] if self._folder is None else [self._folder]
        places = [
            place
            for folder in (*own, *self._unlisted)
            for place in ((folder, name), (folder / name, name), (folder / name, "circuit"))
        ]
        return [
            files
            for folder, stem in places
            for kind in key_files()
            if (files := _in_place(name, folder, stem, kind)) is not None
        ]

    def _files(self, name: str) -> CircuitFiles | None:
        found = self._found(name)
        if len(found) > 1:
            paths = " and ".join(str(files.key or files.vkey) for files in found)
            raise InvalidInput(
                f"circuit {name!r} is there more than once",
                path=self._folder,
                role="circuits",
                more=f"({paths})",
            )
        return found[0] if found else None

    def verification_key(self, files: CircuitFiles) -> KnownKey:
        """From ``NAME.vkey.json``, else from the key, of which nothing stays mapped; kept until one changes.

        Raises:
            InvalidInput, MalformedFile, UnsupportedFile: a file is damaged, or they do not belong together.
        """
        paths = [path for path in (files.vkey, files.key) if path is not None]
        with about("key"):
            identities = tuple(identity_of(path) for path in paths)
        with self._lock:
            kept = self._keys.get(files.name)
        if kept is not None and kept[:2] == (files, identities):
            return kept[2]
        keys = [_read(path) for path in paths]
        digests = [key.digest for key in keys]
        if len(set(digests)) > 1:
            raise MalformedFile(
                files.vkey,
                "document",
                "it is not the verification key",
                role="verification key",
                more=f"of {files.key}",
            )
        key = keys[0]
        known = KnownKey(
            key.protocol, curve_label(key.curve), key.n_public, key.document, key.digest, key.warnings
        )
        with self._lock:
            self._keys[files.name] = files, identities, known
        for sentence in known.warnings:
            log.warning("circuit %s: %s", files.name, sentence)
        return known

    def survey(self) -> None:
        """Reads the verification key of every circuit, so that insecure ones are known at the start.

        A key that cannot be read is an error when it is used.
        """
        with suppress(ProverError):
            for name in self.names():
                with suppress(ProverError):
                    self.verification_key(self.find(name))

    def known(self) -> dict[str, KnownKey]:
        """The verification keys that were read, by the circuit's name, as they were then."""
        with self._lock:
            return {name: known for name, (_, _, known) in self._keys.items()}

    def warnings(self) -> tuple[str, ...]:
        """Of the keys that were read, sentences that begin with the circuit's name, sorted."""
        keys = self.known()
        return tuple(f"{name}: {sentence}" for name in sorted(keys) for sentence in keys[name].warnings)


def curve_label(curve: CurveParams) -> str:
    """The curve's name in documents: snarkjs's (``bn128``, ``bls12381``), or its own where there is none."""
    return curve.snarkjs_name or curve.name


def _is_name(name: str) -> bool:
    return len(name) <= 128 and ".." not in name and _NAME.fullmatch(name) is not None


def _in_place(name: str, folder: Path, stem: str, kind: KeyFile) -> CircuitFiles | None:
    def path(suffix: str) -> str | None:
        full = folder / (stem + suffix)
        return str(full) if full.exists() else None

    key, vkey = path(kind.suffix), path(kind.verification_suffix)
    return CircuitFiles(name, key, path(PROGRAM), vkey) if key or vkey else None


def _read(path: str) -> VerificationKey:
    if not path.endswith(".json"):
        return read_verification_key(path)
    with about("verification key"):
        return parse_verification_key(read_json(path), path)
