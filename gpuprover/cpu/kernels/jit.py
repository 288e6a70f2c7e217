"""``@jit``: Numba's compiler with the settings this package needs, and a cache that is never stale.

Numba's own cache looks at the file of the compiled function only, so an edit of a callee
in another file silently runs old code. Here the cache folder carries a hash of all
sources that matter (:mod:`gpuprover.cpu.sources`); Numba adds the CPU's name and features to the key of
each entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching

from gpuprover.cpu.sources import cache_folder, source_digest

F = TypeVar("F", bound=Callable[..., Any])


class _Locator(caching._CacheLocator):
    """Puts every cache file into :func:`cache_folder`, whatever file the function is in."""

    def __init__(self, py_func: Any, py_file: str, folder: Path) -> None:
        self._folder = folder
        self._lineno = py_func.__code__.co_firstlineno
        self._file = py_file

    def get_cache_path(self) -> str:
        return str(self._folder)

    def get_source_stamp(self) -> str:
        return source_digest()

    def get_disambiguator(self) -> str:
        stem = f"{Path(self._file).name}:{self._lineno}"
        return hashlib.sha256(stem.encode()).hexdigest()[:10]

    @classmethod
    def from_function(cls, py_func: Any, py_file: str) -> _Locator | None:
        folder = cache_folder()
        return None if folder is None else cls(py_func, py_file, folder)


class _Impl(caching.CompileResultCacheImpl):
    _locator_classes: Any = [_Locator]  # noqa: RUF012 (Numba's attribute)


class _DataFiles(caching.IndexDataCacheFile):
    """A file for each signature and CPU, named by them.

    Numba numbers the files and keeps an index. Two processes that compile one kernel for two fields at once
    can then take the same number, and load each other's code: fields are no arguments at run time, so nothing
    would show but wrong results.
    """

    def __init__(self, folder: str, base: str, stamp: str) -> None:
        super().__init__(cache_path=folder, filename_base=base, source_stamp=stamp)
        self._base = base

    def _file(self, key: Any) -> str:
        return f"{self._base}.{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def save(self, key: Any, data: Any) -> None:
        self._save_data(self._file(key), (repr(key), data))

    def load(self, key: Any) -> Any:
        try:
            stored, data = self._load_data(self._file(key))
        except OSError:
            return None
        return data if stored == repr(key) else None

    def flush(self) -> None:
        for path in Path(self._cache_path).glob(f"{self._base}.*.nbc"):
            path.unlink(missing_ok=True)


class _Cache(caching.FunctionCache):
    _impl_class = _Impl

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        locator = self._impl.locator
        self._cache_file = _DataFiles(
            locator.get_cache_path(), self._impl.filename_base, locator.get_source_stamp()
        )


def jit(function: F) -> F:
    """Compiles lazily, releases the GIL, wraps integers, caches on disk."""
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    if cache_folder() is not None:
        dispatcher._cache = _Cache(dispatcher.py_func)
    return dispatcher


inline = numba.njit(error_model="numpy")
"""For functions that only other compiled functions call: they are cached with their callers."""
