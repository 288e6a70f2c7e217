"""A whole proving key: whether columns, commitments, circuit and parameters belong together."""

from __future__ import annotations

import numpy as np

from gpuprover.backend import Backend, Form
from gpuprover.curves import Group
from gpuprover.errors import InvalidInput, MalformedFile
from gpuprover.formats.files import Pathish
from gpuprover.systems.midnight.key import ProvingKey
from gpuprover.systems.system import KeyCheck


def check_whole_key(
    key: ProvingKey,
    circuit: Pathish | None,
    ptau: Pathish | None,
    backend: Backend,
    memory: int | None,
) -> KeyCheck:
    """Every point, every column against its commitment, and every column against the key's own circuit.

    Raises:
        InvalidInput: a ``.r1cs`` or powers of tau are given, of which these keys know nothing.
        MalformedFile: something is wrong; names it.
    """
    if circuit is not None or ptau is not None:
        raise InvalidInput(
            "a Midnight key has its circuit within, and no .r1cs or .ptau", path=key.path, role="key"
        )
    key.check_points(backend)
    bases = backend.prepare_bases(Group.G1, key.parameters.srs.lagrange)
    names = (*key.vk.argument.fixed, *key.vk.argument.sigma)
    committed = np.concatenate([key.key.fixed_commitments, key.key.permutation_commitments])
    columns = np.concatenate([key.key.fixed, key.key.permutation])
    layout = key.layout
    expected = np.concatenate([layout.fixed, layout.sigma])
    for name, point, column, own in zip(names, committed, columns, expected, strict=True):
        backend.job.check()
        values = backend.upload(column, Form.MONTGOMERY)
        if not np.array_equal(backend.msm(bases, values), point):
            raise MalformedFile(key.path, f"column {name}", "its commitment is another's", role="key")
        wrong = np.flatnonzero((backend.download(values, Form.CANONICAL) != own).any(axis=1))
        backend.free(values)
        if len(wrong):
            problem = f"row {int(wrong[0])} is not what the circuit in the key gives"
            raise MalformedFile(key.path, f"column {name}", problem, role="key")
    backend.free(bases)
    return KeyCheck(
        ("every point", "every column's commitment", "every column against the circuit"),
        () if key.vk.published else ("whose parameters these are",),
    )
