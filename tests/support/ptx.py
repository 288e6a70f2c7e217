"""Runs one thread of a kernel's PTX: what the compiler made of inline assembly and its carries.

It knows the instructions that the arithmetic kernels consist of, and fails at any other. Registers hold
non-negative integers of their width; the carry flag is written by ``.cc`` alone, as the PTX ISA defines it.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from gpuprover.limbs import Words

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
Operation = Callable[..., int]

# Name without type -> what it computes from operands cut to the type's width.
PLAIN: dict[str, Operation] = {
    "mov": lambda a: a,
    "cvta.to.global": lambda a: a,
    "neg": lambda a: -a,
    "not": lambda a: ~a,
    "add": lambda a, b: a + b,
    "mul.lo": lambda a, b: a * b,
    "mad.lo": lambda a, b, c: a * b + c,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "shr": lambda a, b: a >> b,
    "selp": lambda a, b, p: a if p else b,
    "setp.eq": lambda a, b: a == b,
    "setp.ne": lambda a, b: a != b,
}
# The same between widths: from operands as they are, by the whole name.
CONVERTING: dict[str, Operation] = {
    "cvt.u32.u64": lambda a: a & U32,
    "cvt.u64.u32": lambda a: a,
    "mul.wide.u32": lambda a, b: (a & U32) * (b & U32),
}
# The last argument is the flag. Bit 32 of the result is the flag that it leaves, a borrow in a difference.
CARRYING: dict[str, Operation] = {
    "add": lambda a, b, c: a + b + c,
    "sub": lambda a, b, c: a - b - c,
    "mad.lo": lambda a, b, d, c: (a * b & U32) + d + c,
    "mad.hi": lambda a, b, d, c: (a * b >> 32) + d + c,
}
CARRY_NAME = re.compile(r"(?=.*\.cc|\w*c\.)(add|sub|mad)(c?)(\.lo|\.hi)?(\.cc)?\.u32")
STATEMENT = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.]*)\s*(.*);")
ADDRESS_BITS = 48
"""An address is the number of an argument, and below these bits an offset in bytes."""


def run(ptx: str, kernel: str, *arrays: Words) -> None:
    """Calls ``kernel`` with the arrays, which it may write, as its arguments."""
    body = ptx[ptx.index(f".entry {kernel}(") :]
    body = body[body.index("{") + 1 : body.index("\n}")]
    stripped = (line.strip() for line in body.splitlines())
    lines = [line for line in stripped if line and not line.startswith(("//", "."))]
    labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
    memory = [array.reshape(-1).view(np.uint32) for array in arrays]
    registers: dict[str, int] = {}
    carry = at = 0

    def value(operand: str) -> int:
        return registers[operand] if operand.startswith("%") else int(operand, 0)

    def four_words(operand: str) -> np.ndarray:
        """What ``[%rd1+16]`` points to."""
        register, _, offset = operand.strip("[]").partition("+")
        address = registers[register] + int(offset or 0)
        first = (address & (1 << ADDRESS_BITS) - 1) // 4
        return memory[address >> ADDRESS_BITS][first : first + 4]

    while True:
        line, at = lines[at], at + 1
        if line in (f"{label}:" for label in labels):
            continue
        parsed = STATEMENT.fullmatch(line)
        assert parsed, line
        negated, predicate, name, rest = parsed.groups()
        if predicate and registers[predicate] == (negated == "!"):
            continue
        if name == "ret":
            return
        result, *operands = re.findall(r"\{[^}]*\}|[^,\s]+", rest)
        if name.removesuffix(".uni") == "bra":
            at = labels[result]
        elif name == "ld.param.u64":
            registers[result] = int(operands[0].strip("[]").rsplit("_", 1)[1]) << ADDRESS_BITS
        elif name == "ld.global.v4.u32":
            registers.update(zip(re.findall(r"%\w+", result), map(int, four_words(operands[0])), strict=True))
        elif name == "st.global.v4.u32":
            four_words(result)[:] = [value(x) for x in re.findall(r"[^{},\s]+", operands[0])]
        elif found := CARRY_NAME.fullmatch(name):
            operation, takes, half, leaves = found.groups(default="")
            total = CARRYING[operation + half](*(value(x) & U32 for x in operands), carry if takes else 0)
            registers[result] = total & U32
            carry = total >> 32 & 1 if leaves else carry
        elif name in CONVERTING:
            registers[result] = CONVERTING[name](*map(value, operands))
        else:
            name, kind = name.rsplit(".", 1)
            mask = U64 if kind.endswith("64") else U32
            registers[result] = int(PLAIN[name](*(value(x) & mask for x in operands))) & mask
