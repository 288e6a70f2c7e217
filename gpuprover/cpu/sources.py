"""The sources that end up in compiled code, and the store of what is made of them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from gpuprover.folders import Store

PACKAGE = Path(__file__).resolve().parent.parent


@lru_cache(maxsize=1)
def source_digest() -> str:
    """Sixteen hex digits over the sources that can end up in compiled code, and the compilers' versions."""
    sources = [PACKAGE / "curves.py", PACKAGE / "cpu" / "layout.py"]
    sources += sorted((PACKAGE / "cpu" / "kernels").glob("*.py"))
    for package in ("numba", "llvmlite"):  # found, not imported
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            sources.append(Path(spec.origin).with_name("_version.py"))
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def callers_digest() -> str:
    """The same over what calls them, too: it settles which kernels there are, and for which arguments."""
    digest = hashlib.sha256(source_digest().encode())
    for path in sorted((PACKAGE / "cpu").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def store() -> Store:
    """The compiled code of these sources."""
    return Store(f"numba-{source_digest()}")
