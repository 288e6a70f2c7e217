"""``+``, ``−`` and what else the pairing's tower asks for, on eight elements of Fq2 at a time.

Values are below 2^bits + p, which is below 2.4p, and every operation here brings its result below that
again; so formulas that are written for one element serve for eight as they stand. Each operation is one
function of the compiled module that is called, not copied: the tower has hundreds of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from numba.core.extending import intrinsic, lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature

from gpuprover.cpu.kernels.inversion import shared_function
from gpuprover.cpu.kernels.lanes import (
    LanesType,
    assemble,
    components,
    excess,
    form_factor,
    square_components,
)
from gpuprover.cpu.kernels.limbs import Limbs, difference, multiply, reduce_limbs, splat
from gpuprover.curves import PAIRING_CURVES, FieldParams

into_lanes = form_factor(
    "into_lanes", "An element times this is the element in the lanes' form.", lambda f, m: excess(f, m)
)

Emit = Callable[..., list[Limbs]]


def _shared(b: Any, t: LanesType, name: str, emit: Emit, *args: Any) -> Any:
    """``emit(builder, params, *components)`` as a function of the module."""

    def body(inner: Any, *values: Any) -> Any:
        return assemble(inner, emit(inner, t.params, *(components(inner, t, v) for v in values)))

    return shared_function(b, f"gpuprover.{name}8x2.{t.params.name}", args, body, "noinline")


def _added(b: Any, f: FieldParams, x: list[Limbs], y: list[Limbs]) -> list[Limbs]:
    return [
        reduce_limbs(b, f, [b.add(p, q) for p, q in zip(*parts, strict=True)])
        for parts in zip(x, y, strict=True)
    ]


def _subtracted(b: Any, f: FieldParams, x: list[Limbs], y: list[Limbs]) -> list[Limbs]:
    return [reduce_limbs(b, f, difference(b, f, 3, p, q)) for p, q in zip(x, y, strict=True)]


def _negated(b: Any, f: FieldParams, x: list[Limbs]) -> list[Limbs]:
    return [reduce_limbs(b, f, difference(b, f, 3, [splat(0)] * len(part), part)) for part in x]


def _times_xi(b: Any, f: FieldParams, x: list[Limbs]) -> list[Limbs]:
    """(c + u)·x for c = 1 or 9; nine times a part is twice its reduced fourfold and once itself."""
    c, one = next(curve.pairing.xi for curve in PAIRING_CURVES if curve.base.name == f.name)
    assert one == 1
    assert c in (1, 9)

    def plus(p: Limbs, q: Limbs) -> Limbs:
        return [b.add(i, j) for i, j in zip(p, q, strict=True)]

    scaled = x
    if c == 9:
        doubled = [plus(p, p) for p in x]
        fourfold = [reduce_limbs(b, f, plus(p, p)) for p in doubled]
        scaled = [plus(plus(p, p), q) for p, q in zip(fourfold, x, strict=True)]
    return [
        reduce_limbs(b, f, difference(b, f, 3, scaled[0], x[1])),
        reduce_limbs(b, f, plus(scaled[1], x[0])),
    ]


def _is_extension(x: Any) -> bool:
    return isinstance(x, LanesType) and x.degree == 2


def _register_operator(op: Any, arity: int, name: str, emit: Emit) -> None:
    @infer_global(op)
    class Operator(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) != arity or not _is_extension(args[0]) or any(a != args[0] for a in args):
                return None
            return signature(args[0], *args)

    @lower_builtin(op, *[LanesType] * arity)
    def lower(context: Any, b: Any, sig: Any, args: Any) -> Any:
        return _shared(b, sig.return_type, name, emit, *args)


_register_operator(operator.add, 2, "add", _added)
_register_operator(operator.sub, 2, "sub", _subtracted)
_register_operator(operator.neg, 1, "neg", _negated)


@intrinsic
def lanes_times_xi(typingctx: Any, x: Any) -> Any:
    """ξ·x."""
    if not _is_extension(x):
        return None
    return x(x), lambda context, b, sig, args: _shared(b, x, "xi", _times_xi, args[0])


@intrinsic
def lanes_square_shared(typingctx: Any, x: Any) -> Any:
    """x²."""
    if not _is_extension(x):
        return None
    return x(x), lambda context, b, sig, args: _shared(b, x, "square", square_components, args[0])


@intrinsic
def lanes_scale(typingctx: Any, x: Any, k: Any) -> Any:
    """x·k for k in Fq."""
    if not _is_extension(x) or not isinstance(k, LanesType) or k.degree != 1:
        return None

    def codegen(context: Any, b: Any, sig: Any, args: Any) -> Any:
        factor = components(b, k, args[1])[0]
        return assemble(b, [multiply(b, x.params, part, factor) for part in components(b, x, args[0])])

    return x(x, k), codegen
