"""The CUDA sources of a curve: the files of ``kernels/`` and its constants, written from its record.

A translation unit knows one curve: ``curve_constants.cuh`` is made here and names its fields
``FqConstants`` and ``FrConstants``, whatever the curve.
"""

from __future__ import annotations

from gpuprover.cuda.device import Program
from gpuprover.curves import CurveParams, FieldParams

CONSTANTS = "curve_constants.cuh"
"""The name by which the kernels include the curve's constants."""
LIMB_BITS = 32
VARIANTS: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = {
    "msm.cu": ((("GROUP", "2"),), (("GROUP", "1"),)),
    "pairs.cu": ((("GROUP", "2"),), (("GROUP", "1"),)),
    "ntt.cu": ((), (("COMPACT", "1"),)),
}
"""File of ``kernels/`` -> the macros of each of its programs; any other file is one program, without any."""


MEASURED_ONLY = ("pairs.cu", "rates.cu")
"""What benchmarks launch, and no proof does: additions in pairs are off until a GPU has decided on them."""


def proving_programs(curve: CurveParams) -> list[Program]:
    """As :func:`programs`, without those that no proof launches."""
    return [program for program in programs(curve) if program.source not in MEASURED_ONLY]


def programs(curve: CurveParams) -> list[Program]:
    """All programs of a curve, what takes longest to compile first: all that is launched."""
    names = sorted((n for n in sources(curve) if n.endswith(".cu")), key=lambda n: (n not in VARIANTS, n))
    return [Program(curve, name, defines) for name in names for defines in VARIANTS.get(name, ((),))]


def sources(curve: CurveParams) -> dict[str, str]:
    """File name -> text of all that a compiler needs for ``curve``: ``.cu``, ``.cuh`` and the constants."""
    from importlib.resources import files  # with zipfile, for a process that may have no GPU

    kernels = {
        path.name: path.read_text(encoding="utf-8")
        for path in files("gpuprover.kernels").iterdir()
        if path.name.endswith((".cu", ".cuh"))
    }
    return {**kernels, CONSTANTS: header(curve)}


def header(curve: CurveParams) -> str:
    """``curve_constants.cuh``: what the kernels need to know of the fields of ``curve``."""
    lines = [
        f"// The fields of {curve.name}, made by gpuprover/cuda/source.py from gpuprover/curves.py.",
        "",
        "#pragma once",
        "",
        '#include "words.cuh"',
        *_struct("FqConstants", curve.base),
        *_struct("FrConstants", curve.scalar),
    ]
    return "\n".join(lines) + "\n"


def _struct(name: str, field: FieldParams) -> list[str]:
    p, limbs = field.modulus, 8 * field.bytes // LIMB_BITS
    lazy = 4 * p < 1 << 8 * field.bytes
    values = {
        "modulus": p,
        "bound": 2 * p if lazy else p,
        "one": field.R,
        "r_squared": field.R**2 % p,
    }
    return [
        "",
        f"struct {name} {{",
        f"    static constexpr int LIMBS = {limbs};",
        "    // Whether 4p < R, and so elements in registers may lie in [0, 2p).",
        f"    static constexpr bool LAZY = {str(lazy).lower()};",
        "    // −p⁻¹ mod 2^32.",
        f"    static constexpr u32 N0 = {field.n0 % (1 << LIMB_BITS):#010x};",
        *(line for value_name, value in values.items() for line in _limbs(value_name, value, limbs)),
        "};",
    ]


def _limbs(name: str, value: int, limbs: int) -> list[str]:
    """A function from an index to a limb: unlike an array's, its values need no memory on the device."""
    words = ", ".join(f"{value >> (LIMB_BITS * i) & 0xFFFFFFFF:#010x}" for i in range(limbs))
    return [
        f"    DEVICE static constexpr u32 {name}(int i) {{",
        f"        constexpr u32 limbs[] = {{{words}}};",
        "        return limbs[i];",
        "    }",
    ]
