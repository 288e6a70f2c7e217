"""Pallas and Vesta: a cycle of curves without a pairing.

Zcash, "The Pasta curves" (github.com/zcash/pasta): the moduli, y² = x³ + 5, orders, and (−1, 2) on both.
"""

from __future__ import annotations

from gpuprover.curves import CurveParams, FieldParams

FP = FieldParams("pasta.fp", 0x40000000000000000000000000000000224698FC094CF91B992D30ED00000001)
FQ = FieldParams("pasta.fq", 0x40000000000000000000000000000000224698FC0994A8DD8C46EB2100000001)
PALLAS = CurveParams("pallas", "", base=FP, scalar=FQ, b=5, g1=(FP.modulus - 1, 2))
VESTA = CurveParams("vesta", "", base=FQ, scalar=FP, b=5, g1=(FQ.modulus - 1, 2))
