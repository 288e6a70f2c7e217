"""What Numba has compiled, kept in files: never stale, never somebody else's, made anew where it is damaged.

Numba's own cache looks at the file of the compiled function only, so that an edit of a callee in another file
silently runs old code. It numbers the files of a function's compiled forms and keeps an index: two processes
that compile one kernel for two fields at once can take the same number, and load each other's code (fields
are no arguments at run time: nothing would show but wrong results). And it unpickles whatever is there.

Here the folder is named by all sources that matter (:mod:`gpuprover.cpu.sources`), a file by the signature
and the CPU's name and features, and what is unpickled has a MAC (:mod:`gpuprover.folders`).
"""

from __future__ import annotations

import hashlib
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

from numba.core import caching

from gpuprover.cpu.sources import source_digest, store
from gpuprover.folders import Store


class _Locator(caching._CacheLocator):
    """What Numba asks of a cache's place. Files are opened by :class:`Files`, none by Numba."""

    def __init__(self, py_func: Any, py_file: str) -> None:
        self._lineno = py_func.__code__.co_firstlineno
        self._file = py_file

    def ensure_cache_path(self) -> None:
        """Whoever writes makes it."""

    def get_cache_path(self) -> str:
        return ""

    def get_source_stamp(self) -> str:
        return source_digest()

    def get_disambiguator(self) -> str:
        stem = f"{Path(self._file).name}:{self._lineno}"
        return hashlib.sha256(stem.encode()).hexdigest()[:10]

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator:
        return cls(py_func, py_file)


class _Impl(caching.CompileResultCacheImpl):
    _locator_classes: Any = [_Locator]  # noqa: RUF012 (Numba's attribute)


class Files(caching.IndexDataCacheFile):
    """A file for each signature and CPU of one function, named by them."""

    def __init__(self, kept_in: Store, base: str) -> None:
        super().__init__(cache_path="", filename_base=base, source_stamp="")
        self._store, self._base = kept_in, base

    def _file(self, key: Any) -> str:
        return f"{self._base}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def save(self, key: Any, data: Any) -> None:
        self._store.write_signed(self._file(key), self._dump((repr(key), data)))

    def load(self, key: Any) -> Any:
        signed = self._store.read_signed(self._file(key))
        if signed is None:
            return None
        stored, data = pickle.loads(signed)
        return data if stored == repr(key) else None

    def flush(self) -> None:
        for name in self._store.files():
            if name.startswith(f"{self._base}.") and name.endswith(".nbc"):
                self._store.remove(name)


class Kept(caching.FunctionCache):
    """The cache of one function, for its dispatcher."""

    _impl_class = _Impl

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file = Files(store(), self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Compiled code for the signature; None where there is none that this process can take."""
        with suppress(Exception):  # of packages in another version than wrote it: compiled anew
            return super().load_overload(sig, target_context)
        return None
