"""Vectors element by element: the launches of kernels/vector.cu."""

from __future__ import annotations

from collections.abc import Callable

from gpuprover.backend import Form
from gpuprover.cuda.columns import Span, squares
from gpuprover.cuda.device import Allocator, Device, Program
from gpuprover.curves import CurveParams
from gpuprover.limbs import field_to_words

THREADS = 256
"""Threads of a block. A prediction, like the next two."""
SCALED = 16
"""Elements of a thread that scales by powers: a power by its bits takes it some 40 products."""
INVERTED = 64
"""Elements of a thread that share an inversion, which takes as long as some 90 products."""
ADD, SUB, MUL = range(3)
TO_MONTGOMERY, FROM_MONTGOMERY = range(2)
"""As kernels/vector.cu numbers them."""


class Vectors:
    """Operations of one device, on its main stream; those on empty vectors launch nothing.

    Args:
        check: called before every launch; an exception of its ends the operation.
    """

    def __init__(self, device: Device, curve: CurveParams, check: Callable[[], None]) -> None:
        self._device, self._curve, self._check = device, curve, check
        self._program = Program(curve, "vector.cu")

    def to_montgomery(self, v: Span, form: Form, out: Span) -> None:
        """out ← the elements of v, which are in another form than Montgomery; out may be v."""
        self._convert(TO_MONTGOMERY if form is Form.CANONICAL else FROM_MONTGOMERY, v, out)

    def from_montgomery(self, v: Span, form: Form, out: Span) -> None:
        """out ← the elements of v in another form than Montgomery; out may be v."""
        self._convert(FROM_MONTGOMERY if form is Form.CANONICAL else TO_MONTGOMERY, v, out)

    def pointwise(self, operation: int, a: Span, b: Span, out: Span) -> None:
        """out ← a + b, a − b or a·b; out may be either.

        Raises:
            ValueError: their lengths differ.
        """
        _same_length(a, b)
        self._each("pointwise", a.length, 1, operation, a.at, b.at, out.at, 0)

    def multiply_subtract(self, a: Span, b: Span, c: Span) -> None:
        """a ← a·b − c. Raises ValueError if their lengths differ."""
        _same_length(a, b, c)
        self._each("multiply_subtract", a.length, 1, a.at, b.at, c.at, 0)

    def scale_powers(self, v: Span, factor: int, base: int, memory: Allocator) -> None:
        """v[i] ← factor·base^i·v[i], with scratch from ``memory``."""
        if not v.length:
            return
        threads = _blocks(v.length, SCALED) * THREADS
        powers = squares(base, max(v.length - 1, threads).bit_length(), self._curve.r)
        words = field_to_words(self._curve.scalar, [factor, *powers])
        constants = memory.allocate(words.nbytes)
        self._device.write(constants, words)
        self._each("scale_powers", v.length, SCALED, v.at, constants, 0)
        memory.release(constants)

    def batch_inverse(self, v: Span, out: Span) -> None:
        """out[i] ← 1/v[i], and 0 where v[i] is 0."""
        self._each("batch_inverse", v.length, INVERTED, v.at, out.at, 0)

    def _convert(self, operation: int, v: Span, out: Span) -> None:
        self._each("convert", v.length, 1, operation, v.at, out.at, 0)

    def _each(self, kernel: str, n: int, share: int, *arguments: int) -> None:
        """A kernel over n elements, of which a thread takes about ``share``; n is its last argument."""
        if n:
            self._check()
            self._device.launch(self._program, kernel, _blocks(n, share), THREADS, *arguments, n)


def _blocks(n: int, share: int) -> int:
    return -(-n // (THREADS * share))


def _same_length(*vectors: Span) -> None:
    lengths = [v.length for v in vectors]
    if len(set(lengths)) > 1:
        raise ValueError(f"vectors of lengths {', '.join(map(str, lengths[:-1]))} and {lengths[-1]}")
