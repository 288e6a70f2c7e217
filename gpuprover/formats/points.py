"""Single curve points in files and documents: whether they lie on their curve."""

from __future__ import annotations

import numpy as np

from gpuprover.curves import CurveParams, Group
from gpuprover.limbs import Words, words_to_ints, words_to_points


def checked_point(curve: CurveParams, group: Group, words: Words, *, infinity: str = "") -> Words:
    """A point of a file, Montgomery words of any shape and alignment -> a copy, uint64[words], on its curve.

    Args:
        infinity: a clause that says why the point at infinity is refused; "" where it is good.

    Raises:
        ValueError: it is not; the message says what is wrong.
    """
    params = curve.group(group)
    row = np.array(words, dtype=np.uint64).reshape(params.words)
    if any(v >= curve.q for v in words_to_ints(row.reshape(-1, curve.base.limbs))):
        raise ValueError(f"a coordinate is not below the base prime of {curve.name}")
    if not params.on_curve(words_to_points(curve, group, row)[0]):
        raise ValueError(f"not on the {'curve' if group is Group.G1 else 'twist of'} {curve.name}")
    if infinity and not row.any():
        raise ValueError(f"the point at infinity, {infinity}")
    return row
