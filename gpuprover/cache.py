"""Folders for what this package compiles: one user's own, named by what went into them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

CACHE_VARIABLE = "GPUPROVER_CACHE_DIR"


def cache_root() -> Path:
    """``GPUPROVER_CACHE_DIR``, or gpuprover's folder in the user's cache folder."""
    explicit = os.environ.get(CACHE_VARIABLE)
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gpuprover"


def own_folder(name: str) -> Path | None:
    """The folder ``name`` for compiled code, made if need be; None where none is writable."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    for root in (cache_root(), Path(tempfile.gettempdir()) / f"gpuprover-{user}"):
        folder = root / name
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
                continue  # compiled code is executed: never load what another user owns
            probe = folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError:
            continue
        return folder
    return None
