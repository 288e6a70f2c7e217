"""Midnight's public parameters on this machine: found and compared with the published hashes before anything
listens."""

from __future__ import annotations

import os
from pathlib import Path

from gpuprover.errors import InvalidInput
from gpuprover.midnight.srs import check_srs, file_name, parameters_folder, published

SOURCE = "https://srs.midnight.network"
USUAL = 15
"""k of the largest circuit that the ledger itself has."""


def use_parameters(folder: Path | None) -> tuple[Path, list[int]]:
    """Has this process, and those that it starts, take parameters from a folder.

    Args:
        folder: None for the usual one, see :func:`gpuprover.midnight.srs.parameters_folder`.

    Returns:
        the folder, and the k of the parameters in it, sorted.

    Raises:
        InvalidInput: there are none; names a file that would do, and its hash.
        MalformedFile: a file is not the published one; names it, and the hash that it should have.
    """
    found = parameters_folder(folder)
    sizes = check_parameters(found)
    os.environ["MIDNIGHT_PP"] = str(found)
    return found, sizes


def check_parameters(folder: Path) -> list[int]:
    """As :func:`use_parameters`, and nothing else."""
    sizes = sorted(k for k in published() if (folder / file_name(k)).exists())
    if not sizes:
        raise InvalidInput(
            f"Midnight's parameters are missing: expected {_named(USUAL)}, or those of another size, from "
            f"{SOURCE}; nothing is fetched by itself",
            path=folder,
            role="powers of tau",
        )
    for k in sizes:
        check_srs(folder / file_name(k))
    return sizes


def require_parameters(k: int, folder: Path) -> None:
    """Raises InvalidInput if there are none for circuits of 2^k rows; names the file and its hash."""
    if not any((folder / file_name(size)).exists() for size in published() if size >= k):
        raise InvalidInput(
            f"the parameters are missing: expected {_named(k)}, or larger ones, from {SOURCE}",
            path=folder,
            role="powers of tau",
        )


def _named(k: int) -> str:
    return f"{file_name(k)} (SHA-256 {published()[k]})"
