"""A witness as somebody gives it: a file, a file's bytes, values, or inputs of the program that computes it.

:func:`looked_at` is the only place that asks which of them it is. What it returns can become the values
(:meth:`WitnessSource.load`), or the bytes of a proof system that has witnesses of its own kind
(:meth:`~WitnessSource.content_of`), wait for its turn (:meth:`~WitnessSource.owned`), be recognised
(:meth:`~WitnessSource.digest`) and travel to another process (:meth:`~WitnessSource.packed`, and there
:func:`unpacked`). A witness is secret: no message and no repr holds a value of one.

NumPy is imported by what touches values. The client of a service looks at witnesses too, and has none.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import index
from typing import TYPE_CHECKING, Any, TypeAlias

from gpuprover.caching import keyed_digest
from gpuprover.curves import CURVES, CurveParams
from gpuprover.errors import InvalidInput, about
from gpuprover.formats.files import Pathish, as_path, identity_of, open_regular

if TYPE_CHECKING:
    from gpuprover.formats.wtns import Allocate, Witness
    from gpuprover.job import Job
    from gpuprover.limbs import Words

Buffer = bytes | bytearray | memoryview
WitnessLike: TypeAlias = "Pathish | Buffer | Sequence[int] | Words | Mapping[str, Any] | WitnessSource"
"""Path of a witness's file, its bytes, integers, ``{"inputs": {...}, "wasm": path}``, perhaps with ``fuel``;
or what :func:`looked_at` made of one."""
Packed = tuple[dict[str, Any], list[Buffer] | None]
"""A message about a witness, and the bytes that go beside it; None if the message has all."""

(_LIMBS,) = {curve.scalar.limbs for curve in CURVES}
"""Words of a scalar, as many for every curve; the key says which curve it is."""


class InputsForm(Enum):
    """The keys that inputs come with, which depend on who is asked for the proof.

    Attributes:
        expected: the form in words, for refusals.
        required, optional: keys of the mapping.
    """

    LIBRARY = ("{'inputs': {...}, 'wasm': path}, and perhaps 'fuel'", {"inputs", "wasm"}, {"fuel"})
    ENGINE = ("{'inputs': {...}}, and perhaps 'wasm' and 'fuel'", {"inputs"}, {"wasm", "fuel"})
    SERVICE = ("{'inputs': {...}}; the service has the witness program", {"inputs"}, set[str]())

    def __init__(self, expected: str, required: set[str], optional: set[str]) -> None:
        self.expected, self.required, self.optional = expected, required, optional

    def refusal(self) -> InvalidInput:
        return InvalidInput(f"witness: expected {self.expected}")


class WitnessSource(ABC):
    """A witness as somebody gave it: one of the classes below, which hold it unchanged."""

    @abstractmethod
    def load(self, curve: CurveParams, job: Job, memory_limit: int | None, allocate: Allocate) -> Witness:
        """The witness, in memory of its own that nobody else writes to.

        Args:
            curve: the key's, whose scalars plain values are.
            memory_limit: MiB for the process, where a program has to run.
            allocate: where the values lie: copied to if they are given, else written to by the program.

        Raises:
            InvalidInput, MalformedFile, UnsupportedFile: it is of no such kind, or damaged.
            WitnessGenerationFailed: the program did not compute one.
        """

    def content_of(self, limit: int, job: Job) -> tuple[bytes, str]:
        """(the bytes of a witness's file, its source for messages), for witnesses of another kind.

        Args:
            limit: bytes.

        Raises:
            InvalidInput: it is neither a file nor bytes, the file cannot be read, or there are more.
        """
        raise InvalidInput("witness: expected a file or its bytes, as this proof system reads witnesses")

    @abstractmethod
    def owned(self, curve: Callable[[], CurveParams], content: bool) -> WitnessSource:
        """The same witness, as it can wait: the current folder may change, and memory that bytes or values
        were given in. Inputs are not copied.

        Args:
            curve: the key's, asked for where values have to be told apart from other curves'.
            content: whether a file is read now, so that what is proved is what :meth:`digest` stands for.

        Raises:
            InvalidInput: a path, a file or values cannot be used.
        """

    def digest(self) -> bytes | None:
        """A digest of the content under a secret of this process; equal witnesses in one form have the same.

        None where the content is not known: of a file that is not read yet, of inputs that are not JSON.

        Raises:
            InvalidInput: the file of a program that is part of it cannot be read.
        """
        return None

    @abstractmethod
    def packed(self) -> Packed:
        """The witness for another process; :func:`unpacked` is the inverse.

        Raises:
            InvalidInput: values are none of a field, or inputs none of a circuit.
        """


@dataclass(repr=False)
class WitnessFile(WitnessSource):
    """The path of a witness's file."""

    path: Pathish

    @about("witness")
    def content_of(self, limit: int, job: Job) -> tuple[bytes, str]:
        with job.phase("load witness"):
            file, size = open_regular(self.path)
            with file:
                content = file.read(limit + 1)
        if len(content) > limit:
            raise InvalidInput(f"expected at most {limit} bytes, found {size}", path=self.path)
        return content, str(self.path)

    @about("witness")
    def load(self, curve: CurveParams, job: Job, memory_limit: int | None, allocate: Allocate) -> Witness:
        from gpuprover.formats.wtns import read_witness

        with job.phase("load witness"):
            return read_witness(self.path, allocate)

    def owned(self, curve: Callable[[], CurveParams], content: bool) -> WitnessSource:
        path = os.path.abspath(as_path(self.path, "witness"))
        if not content:
            return WitnessFile(path)
        with about("witness"):
            file, _ = open_regular(path)
        with file:
            return WitnessBytes(file.read())

    def packed(self) -> Packed:
        return {"path": os.path.abspath(os.fsdecode(os.fspath(self.path)))}, None


@dataclass(repr=False)
class WitnessBytes(WitnessSource):
    """The content of a witness's file."""

    content: Buffer

    def content_of(self, limit: int, job: Job) -> tuple[bytes, str]:
        size = memoryview(self.content).nbytes
        if size > limit:
            raise InvalidInput(f"witness: expected at most {limit} bytes, found {size}")
        return bytes(self.content), "<witness bytes>"

    @about("witness")
    def load(self, curve: CurveParams, job: Job, memory_limit: int | None, allocate: Allocate) -> Witness:
        from gpuprover.formats.wtns import read_witness

        with job.phase("load witness"):
            return read_witness(self.content, allocate)

    def owned(self, curve: Callable[[], CurveParams], content: bool) -> WitnessSource:
        return WitnessBytes(bytes(self.content))

    def digest(self) -> bytes | None:
        return keyed_digest(self.content)

    def packed(self) -> Packed:
        view = memoryview(self.content)
        return {"bytes": "file"}, [view if view.c_contiguous else bytes(view)]


@dataclass(eq=False, repr=False)
class WitnessValues(WitnessSource):
    """The values of all wires: integers, or uint64[n, limbs]; not looked at before they are used."""

    values: Sequence[int] | Words

    @about("witness")
    def load(self, curve: CurveParams, job: Job, memory_limit: int | None, allocate: Allocate) -> Witness:
        from gpuprover.formats.wtns import Witness, check_witness_values, own_words

        # What is checked is a copy, which its caller does not change.
        words = own_words(self._words_of(curve), allocate)
        check_witness_values(words, curve, "witness", "values")
        return Witness(curve, words)

    def owned(self, curve: Callable[[], CurveParams], content: bool) -> WitnessSource:
        from gpuprover.formats.wtns import witness_bytes

        known = curve()
        return WitnessBytes(witness_bytes(known.scalar, self._words_of(known)))

    def packed(self) -> Packed:
        import numpy as np

        words = _words(self.values, _LIMBS, "the field's prime")
        return {"bytes": "words", "limbs": _LIMBS}, [np.ascontiguousarray(words).data]

    def _words_of(self, curve: CurveParams) -> Words:
        return _words(self.values, curve.scalar.limbs, f"the prime of {curve.scalar.name}")


@dataclass(repr=False)
class WitnessInputs(WitnessSource):
    """Values of a circuit's input signals, for its witness program.

    Attributes:
        inputs: by name: integers, as numbers or text, and lists of them; or the JSON text of that, as bytes.
        program: path of circom's ``.wasm``; None where whoever proves has it.
        fuel: WASM instructions that may run, about; None for as many as usual.
    """

    inputs: Any
    program: str | None
    fuel: Any = None

    @about("witness")
    def load(self, curve: CurveParams, job: Job, memory_limit: int | None, allocate: Allocate) -> Witness:
        from gpuprover.formats import json_files
        from gpuprover.formats.wtns import Witness
        from gpuprover.witness import calculate_witness

        if self.program is None:
            raise InputsForm.LIBRARY.refusal()
        with job.phase("calculate witness"):
            inputs = self.inputs
            if isinstance(inputs, bytes):
                with about("inputs"):
                    inputs = json_files.parse_json(inputs, "circuit inputs")
            found, words = calculate_witness(
                self.program,
                inputs,
                job=job,
                fuel=self.fuel,
                memory_limit=memory_limit,
                allocate=allocate,
            )
        return Witness(found, words, self.program)

    def owned(self, curve: Callable[[], CurveParams], content: bool) -> WitnessSource:
        return WitnessInputs(self.inputs, self._absolute(), self.fuel)

    def digest(self) -> bytes | None:
        if self.program is None:
            return None
        try:
            text = self.inputs if isinstance(self.inputs, bytes) else json.dumps(self.inputs, sort_keys=True)
            with about("witness program"):
                return keyed_digest(text, repr(self.fuel), repr(identity_of(self.program)))
        except (TypeError, ValueError, RecursionError):
            return None  # what is wrong with them, their use will say

    def packed(self) -> Packed:
        text = isinstance(self.inputs, bytes)
        message = {
            "bytes": "text" if text else "inputs",
            "program": self._absolute(),
            "fuel": json.loads(_json(self.fuel)),
        }
        return message, [self.inputs if text else _json(self.inputs)]

    def _absolute(self) -> str | None:
        return None if self.program is None else os.path.abspath(self.program)


def looked_at(
    given: WitnessLike,
    form: InputsForm = InputsForm.LIBRARY,
    *,
    circuit: str = "",
    program: Pathish | None = None,
) -> WitnessSource:
    """The kind of witness that a caller gave.

    Args:
        form: what inputs have to come with.
        circuit: the circuit's name, where an engine is asked.
        program: the circuit's witness program, where an engine is asked and has one.

    Raises:
        InvalidInput: a mapping with other keys than ``form`` has, or without a program.
    """
    if isinstance(given, WitnessSource):
        return given
    if isinstance(given, str | os.PathLike):
        return WitnessFile(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return WitnessBytes(given)
    if not isinstance(given, Mapping):
        return WitnessValues(given)
    if not form.required <= set(given) <= form.required | form.optional:
        raise form.refusal()
    inputs, fuel = given["inputs"], given.get("fuel")
    if form is InputsForm.SERVICE:
        return WitnessInputs(inputs, None)
    found = given.get("wasm", program)
    if found is None and form is InputsForm.ENGINE:
        raise InvalidInput(f"witness: circuit {circuit!r} has no program beside its key to run")
    return WitnessInputs(inputs, str(as_path(found, "witness program")), fuel)


def unpacked(message: Mapping[str, Any], data: Sequence[memoryview]) -> WitnessSource:
    """The witness of a message and the bytes that came with it, which are not copied."""
    if "path" in message:
        return WitnessFile(str(message["path"]))
    (content,) = data
    if message["bytes"] == "file":
        return WitnessBytes(content)
    if message["bytes"] == "words":
        import numpy as np

        return WitnessValues(np.frombuffer(content, dtype=np.uint64).reshape(-1, message["limbs"]))
    inputs = bytes(content) if message["bytes"] == "text" else json.loads(bytes(content))
    return WitnessInputs(inputs, message["program"], message["fuel"])


def _words(values: Sequence[int] | Words, limbs: int, bound: str) -> Words:
    """Integers as uint64[n, limbs]; an array that is that already stays as it is, its values not looked at.

    Raises:
        InvalidInput: an array of another kind, or values that are no integers from 0 to below 2^(64·limbs).
    """
    import numpy as np

    from gpuprover.limbs import ints_to_words

    if isinstance(values, np.ndarray) and values.ndim == 2:
        if values.dtype != np.uint64 or values.shape[1] != limbs:
            raise InvalidInput(
                f"witness: expected uint64[n, {limbs}], found {values.dtype} of shape {values.shape}"
            )
        return values
    try:
        return ints_to_words((index(v) for v in values), limbs)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(f"witness: expected integers from 0 to below {bound}") from None


def _json(value: Any) -> bytes:
    """Inputs as JSON, with NumPy's integers and arrays as Python's."""

    def plain(part: object) -> object:
        import numpy as np

        if isinstance(part, np.ndarray | np.integer):
            return part.tolist()
        raise TypeError

    try:
        return json.dumps(value, default=plain).encode()
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(
            "witness: inputs: expected integers, as numbers or text, and lists of them"
        ) from None
