"""Midnight's public parameters on this machine: found and compared with the published hashes before anything
listens."""

from __future__ import annotations

import os
from pathlib import Path

from gpuprover.errors import InvalidInput
from gpuprover.midnight.srs import FOLDER_VARIABLE, MAX_K, check_srs, file_name, missing_message, srs_folder

ROLE = "parameters"
USUAL_K = 15
"""That of the largest circuit of the ledger's own, whose parameters do for most contracts."""


def use_parameters(folder: Path | None) -> tuple[Path, list[int]]:
    """Has this process, and those that it starts, take parameters from a folder.

    Args:
        folder: see :func:`gpuprover.midnight.srs.srs_folder`.

    Returns:
        the folder, and the k of the parameters in it, sorted.

    Raises:
        InvalidInput: there are none; names a file that would do, and its hash.
        MalformedFile: a file is not the published one; names it, and the hash that it should have.
    """
    found = srs_folder(folder).absolute()
    sizes = [k for k in range(MAX_K + 1) if (found / file_name(k)).exists()]
    if not sizes:
        raise InvalidInput(missing_message(USUAL_K), path=found, role=ROLE)
    for k in sizes:
        if check_srs(found / file_name(k)) != k:
            raise InvalidInput(
                f"expected parameters of k = {k} by the file's name", path=found / file_name(k)
            )
    os.environ[FOLDER_VARIABLE] = str(found)
    return found, sizes


def require_parameters(k: int, folder: Path) -> None:
    """Raises InvalidInput if there are none for circuits of 2^k rows; names the file and its hash."""
    if not any((folder / file_name(size)).exists() for size in range(k, MAX_K + 1)):
        raise InvalidInput(missing_message(k), path=folder, role=ROLE)
