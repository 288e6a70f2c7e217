"""A witness as somebody gives it: a file, bytes, integers, or the inputs of a program that computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import index
from os import PathLike
from typing import Any

import numpy as np

from gpuprover.curves import CurveParams
from gpuprover.errors import InvalidInput, about
from gpuprover.formats import json_files
from gpuprover.formats.files import Pathish, as_path
from gpuprover.formats.wtns import Allocate, Witness, check_witness_values, ordinary, own_words, read_witness
from gpuprover.job import Job
from gpuprover.limbs import Words, ints_to_words

WitnessLike = Pathish | bytes | bytearray | memoryview | Sequence[int] | Words | Mapping[str, Any]
"""Path of a ``.wtns``, its bytes, integers, or ``{"inputs": {...}, "wasm": path}``, perhaps with ``fuel``."""


@about("witness")
def load_witness(
    source: WitnessLike,
    curve: CurveParams,
    job: Job,
    memory_limit: int | None,
    allocate: Allocate = ordinary,
) -> Witness:
    """The witness, in memory of its own that nobody else writes to.

    Args:
        memory_limit: MiB for the process, where a program has to run.
        allocate: where values that are given are copied to.

    Raises:
        InvalidInput, MalformedFile, UnsupportedFile: it is of no such kind, or damaged.
        WitnessGenerationFailed: the program did not compute one.
    """
    if isinstance(source, bytes | bytearray | memoryview | str | PathLike):
        with job.phase("load witness"):
            return read_witness(source, allocate)
    if isinstance(source, Mapping):
        from gpuprover.witness import calculate_witness

        unknown = set(source) - {"inputs", "wasm", "fuel"}
        if unknown or "wasm" not in source or "inputs" not in source:
            raise InvalidInput("witness: expected {'inputs': {...}, 'wasm': path}, and perhaps 'fuel'")
        program = str(as_path(source["wasm"], "witness program"))
        inputs = source["inputs"]
        with job.phase("calculate witness"):
            if isinstance(inputs, bytes):
                with about("inputs"):
                    inputs = json_files.parse_json(inputs, "circuit inputs")
            found, words = calculate_witness(
                program,
                inputs,
                job=job,
                fuel=source.get("fuel"),
                memory_limit=memory_limit,
            )
        return Witness(found, words, program)
    # What is checked is a copy, which its caller does not change.
    words = own_words(witness_words(source, curve), allocate)
    check_witness_values(words, curve, "witness", "values")
    return Witness(curve, words)


def witness_words(values: Sequence[int] | Words, curve: CurveParams) -> Words:
    """Integers as uint64[n, limbs]; an array that is that already stays as it is, its values not looked at.

    Raises:
        InvalidInput: an array of another kind, or values that are no integers from 0 to below 2^(64·limbs).
    """
    limbs = curve.scalar.limbs
    if isinstance(values, np.ndarray) and values.ndim == 2:
        if values.dtype != np.uint64 or values.shape[1] != limbs:
            raise InvalidInput(
                f"witness: expected uint64[n, {limbs}], found {values.dtype} of shape {values.shape}"
            )
        return values
    try:
        return ints_to_words((index(v) for v in values), limbs)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(
            f"witness: expected integers from 0 to below the prime of {curve.scalar.name}"
        ) from None
