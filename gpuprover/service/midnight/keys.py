"""Keys that come with requests: kept by digest as files, where the engine finds them as circuits."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

from gpuprover.caching import Cache, CacheStatistics
from gpuprover.errors import DeviceError
from gpuprover.midnight.envelopes import KeyMaterial

PREFIX = "midnight-"


@dataclass(eq=False)
class StoredKey:
    """A circuit's prover key, as a file for as long as anybody has this.

    Attributes:
        name: the circuit's, for the engine.
        circuit: its ZKIR, with its tag.
        size: bytes of the file and of the circuit.
    """

    name: str
    circuit: bytes
    size: int


class KeyStore:
    """Keys by digest, within a number of bytes. For any thread.

    Args:
        folder: a new folder is made in it, which :meth:`close` removes; None for the system's.
        capacity: bytes; keys that are in use may exceed them.
        check: called once with new material; raises what is wrong with it.
    """

    def __init__(self, folder: Path | None, capacity: int, check: Callable[[KeyMaterial], None]) -> None:
        self.folder = Path(mkdtemp(prefix="gpuprover-keys-", dir=folder))
        self._check = check
        self._keys: Cache[str, StoredKey] = Cache(capacity)
        self._finalizer = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def put(self, material: KeyMaterial) -> StoredKey:
        """The keys as a circuit of the engine's; parsed and written only if they are not there.

        Raises:
            MalformedFile, UnsupportedFile, InvalidInput: they are damaged, or do not belong together.
            DeviceError: they cannot be written.
        """
        digest = sha256()
        for part in (material.prover, material.verifier, material.circuit):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        name = PREFIX + digest.hexdigest()

        def make() -> StoredKey:
            self._check(material)
            return self._write(name, material)

        return self._keys.get_or_make(name, make, lambda key: key.size)

    def _write(self, name: str, material: KeyMaterial) -> StoredKey:
        # The prover key has all that the other two say, as was checked.
        path = self.folder / f"{name}.prover"
        temporary = path.with_suffix(".part")
        try:
            temporary.write_bytes(material.prover)
            # Under its name once it is whole: the engine may look at any time.
            os.replace(temporary, path)
        except OSError as error:
            _remove(temporary)
            raise DeviceError(f"the keys cannot be kept: {error.strerror}") from None
        key = StoredKey(name, bytes(material.circuit), len(material.prover) + len(material.circuit))
        weakref.finalize(key, _remove, path)
        return key

    @property
    def statistics(self) -> CacheStatistics:
        return self._keys.statistics

    def close(self) -> None:
        """Removes all files."""
        self._keys.clear()
        self._finalizer()


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
