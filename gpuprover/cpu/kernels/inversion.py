"""One over a field element: a binary greatest common divisor in blocks of 31 steps, as LLVM code.

T. Pornin, "Optimized Binary GCD for Modular Inversion" (2020, IACR ePrint 2020/972), in variable time. A
step makes a even (swaps a and b if a < b, then subtracts b) and halves it. Which steps come next is seen
from 64 bits of each: 33 at the top and 31 at the bottom. So 31 steps run on two words; what they do is
a·f0 + b·g0 and a·f1 + b·g1 over 2^31 with |f| + |g| <= 2^31, and is then done to the long integers at once.
Zeros at the bottom are counted, not walked through. About 180 subtractions and 12 blocks for 254 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from llvmlite import ir

from gpuprover.curves import FieldParams

I1, I64, I128 = ir.IntType(1), ir.IntType(64), ir.IntType(128)
STEPS = 31
LOW = (1 << STEPS) - 1
WORD_MASK = (1 << 64) - 1

Pair = tuple[Any, Any]


def split(b: ir.IRBuilder, x: Any, n: int) -> list[Any]:
    """The n lowest words of an integer."""
    return [b.trunc(b.lshr(x, x.type(64 * i)) if i else x, I64) for i in range(n)]


def join(b: ir.IRBuilder, words: list[Any]) -> Any:
    """An integer from its words, the lowest first."""
    wide = ir.IntType(64 * len(words))
    result = wide(0)
    for i, w in enumerate(words):
        result = b.or_(result, b.shl(b.zext(w, wide), wide(64 * i)))
    return result


def shared_function(
    b: ir.IRBuilder, name: str, args: tuple[Any, ...], body: Callable[..., Any], attribute: str
) -> Any:
    """Calls the module's function ``name``, defined on first use; it returns what its first argument is."""
    module = b.module
    function = module.globals.get(name)
    if function is None:
        kinds = [a.type for a in args]
        function = ir.Function(module, ir.FunctionType(kinds[0], kinds), name)
        function.linkage = "linkonce_odr"
        function.attributes.add(attribute)
        inner = ir.IRBuilder(function.append_basic_block())
        inner.ret(body(inner, *function.args))
    return b.call(function, args)


def _sum_of_products(b: ir.IRBuilder, n: int, *terms: Pair, signed: bool = False) -> list[Any]:
    """Σ x·f for n-word x and signed one-word f below 2^32, as n + 1 words; only the last x may be signed."""
    rows = [(split(b, x, n), b.sext(f, I128)) for x, f in terms]
    words, carry = [], I128(0)
    for i in range(n):
        extend = b.sext if signed and i == n - 1 else b.zext
        for x, f in rows:
            carry = b.add(carry, b.mul(extend(x[i], I128), f))
        words.append(b.trunc(carry, I64))
        carry = b.ashr(carry, I128(64))
    return [*words, b.trunc(carry, I64)]


def _shift_out(b: ir.IRBuilder, words: list[Any]) -> Any:
    """n + 1 words over 2^31, as an integer of n words."""
    low, high = I64(STEPS), I64(64 - STEPS)
    return join(b, [b.or_(b.lshr(w, low), b.shl(above, high)) for w, above in pairwise(words)])


def _leading_parts(b: ir.IRBuilder, n: int, x: Any, y: Any) -> Pair:
    """For both, 33 bits from where the longer begins and the 31 lowest; all of them if they have 64."""
    xs, ys = split(b, x, n), split(b, y, n)
    (x_high, x_low), (y_high, y_low) = (xs[1], xs[0]), (ys[1], ys[0])
    for i in range(2, n):
        used = b.icmp_unsigned("!=", b.or_(xs[i], ys[i]), I64(0))
        x_high, x_low = b.select(used, xs[i], x_high), b.select(used, xs[i - 1], x_low)
        y_high, y_low = b.select(used, ys[i], y_high), b.select(used, ys[i - 1], y_low)
    top = b.or_(x_high, y_high)
    long = b.icmp_unsigned("!=", top, I64(0))
    shift = b.ctlz(top, I1(1))
    parts = []
    for words, high, low in ((xs, x_high, x_low), (ys, y_high, y_low)):
        rest = b.lshr(b.lshr(low, I64(1)), b.sub(I64(63), shift))
        leading = b.select(long, b.or_(b.shl(high, shift), rest), words[0])
        parts.append(b.or_(b.and_(leading, I64(WORD_MASK ^ LOW)), b.and_(words[0], I64(LOW))))
    return parts[0], parts[1]


def _divided(b: ir.IRBuilder, f: FieldParams, x: Pair, y: Pair) -> Any:
    """(x[0]·x[1] + y[0]·y[1])/2^31 mod p; all in [−p, p], signed.

    The multiple of p that makes the division exact has the other sign than the sum.
    """
    n = f.limbs
    t = _sum_of_products(b, n, x, y, signed=True)
    m = b.and_(b.mul(t[0], I64(f.n0)), I64(LOW))
    m = b.select(b.icmp_signed("<", t[n], I64(0)), m, b.sub(m, I64(1 << STEPS)))
    carry = I128(0)
    for i in range(n):
        p = I128((f.modulus >> 64 * i) & WORD_MASK)
        carry = b.add(b.add(carry, b.zext(t[i], I128)), b.mul(p, b.sext(m, I128)))
        t[i] = b.trunc(carry, I64)
        carry = b.ashr(carry, I128(64))
    t[n] = b.add(t[n], b.trunc(carry, I64))
    return _shift_out(b, t)


def emit_inverse(b: ir.IRBuilder, f: FieldParams, x: Any) -> Any:
    """R²/x mod p, and 0 for 0: where x is in Montgomery form, the Montgomery form of the inverse."""
    n, wide = f.limbs, x.type
    attribute = "alwaysinline" if n <= 4 else "noinline"  # as products are, and for their reasons

    def combined(inner: ir.IRBuilder, x: Any, y: Any, p: Any, q: Any) -> Any:
        return _shift_out(inner, _sum_of_products(inner, n, (x, p), (y, q)))

    def divided(inner: ir.IRBuilder, x: Any, y: Any, p: Any, q: Any) -> Any:
        return _divided(inner, f, (x, p), (y, q))

    entry = b.block
    names = ("block", "approximate", "shift", "subtract", "apply", "end")
    block, approximate, shift, subtract, apply, end = (b.append_basic_block(name) for name in names)
    b.branch(block)

    # Throughout, a = x·u/R² and c = x·v/R² mod p, and c is odd; at the end a = 0, c = gcd(x, p) = 1.
    b.position_at_end(block)
    a, c, u, v = (b.phi(wide) for _ in range(4))
    for phi, start in (
        (a, x),
        (c, wide(f.modulus)),
        (u, wide(f.R**2 % f.modulus)),
        (v, wide(0)),
    ):
        phi.add_incoming(start, entry)
    b.cbranch(b.icmp_unsigned("==", a, wide(0)), end, approximate)

    b.position_at_end(approximate)
    parts = _leading_parts(b, n, a, c)
    b.branch(shift)

    # ``left`` is 2 to the number of steps left: a bit that stops the count of zeros.
    b.position_at_end(shift)
    a1, c1, f0, g0, f1, g1, left = (b.phi(I64) for _ in range(7))
    starts = (*parts, I64(1), I64(0), I64(0), I64(1), I64(1 << STEPS))
    for phi, start in zip((a1, c1, f0, g0, f1, g1, left), starts, strict=True):
        phi.add_incoming(start, approximate)
    zeros = b.cttz(b.or_(a1, left), I1(1))
    a2, f3, g3, left2 = b.lshr(a1, zeros), b.shl(f1, zeros), b.shl(g1, zeros), b.lshr(left, zeros)
    b.cbranch(b.icmp_unsigned("==", left2, I64(1)), apply, subtract)

    b.position_at_end(subtract)
    smaller = b.icmp_unsigned("<", a2, c1)
    differences = [b.sub(p, q) for p, q in ((a2, c1), (f0, f3), (g0, g3))]
    absolute = [b.select(smaller, b.neg(d), d) for d in differences]
    kept = [b.select(smaller, p, q) for p, q in ((a2, c1), (f0, f3), (g0, g3))]
    values = (absolute[0], kept[0], absolute[1], absolute[2], kept[1], kept[2], left2)
    for phi, value in zip((a1, c1, f0, g0, f1, g1, left), values, strict=True):
        phi.add_incoming(value, subtract)
    b.branch(shift)

    # What was compared by its leading bits may come out negative.
    b.position_at_end(apply)
    results = []
    for p, q in ((f0, g0), (f3, g3)):
        t = shared_function(b, f"gpuprover.combined.{f.name}", (a, c, p, q), combined, attribute)
        negative = b.icmp_signed("<", t, wide(0))
        p, q = (b.select(negative, b.neg(k), k) for k in (p, q))
        w = shared_function(b, f"gpuprover.divided.{f.name}", (u, v, p, q), divided, attribute)
        results.append((b.select(negative, b.neg(t), t), w))
    for phi, value in zip((a, u, c, v), (*results[0], *results[1]), strict=True):
        phi.add_incoming(value, apply)
    b.branch(block)

    b.position_at_end(end)
    return b.add(v, b.select(b.icmp_signed("<", v, wide(0)), wide(f.modulus), wide(0)))
