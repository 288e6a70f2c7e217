"""Preimages: the network's files byte for byte, and no value in any text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gpuprover.curves import BLS12_381
from gpuprover.errors import MalformedFile, ProverError, UnsupportedFile
from gpuprover.midnight.preimage import Preimage, read_preimage, write_preimage
from tests.support.midnight import SMALL, data_folder, public_inputs

PREIMAGES = sorted(SMALL.glob("*.preimage"))


@pytest.mark.parametrize("path", PREIMAGES, ids=lambda path: path.stem)
def test_files_byte_for_byte(path: Path) -> None:
    preimage = read_preimage(path.read_bytes(), str(path))
    assert write_preimage(preimage) == path.read_bytes()
    assert preimage.key_location == path.stem
    public = public_inputs(path.with_suffix(".pis.json"))
    assert preimage.binding_input == public[0]
    if preimage.communications_commitment is not None:
        assert preimage.communications_commitment[0] == public[1]


@pytest.mark.parametrize("folder", ["data", "keys", "data08"])
def test_all_files_byte_for_byte(folder: str) -> None:
    paths = sorted(data_folder(folder).glob("*.preimage"))
    assert paths
    for path in paths:
        assert write_preimage(read_preimage(path.read_bytes(), str(path))) == path.read_bytes()


def test_no_text_has_a_value() -> None:
    secret = 918273645546372819
    preimage = Preimage((secret,), (secret,), (secret,), (secret,), secret, (secret, secret), "a/circuit")
    assert repr(preimage) == "Preimage(key_location='a/circuit')"
    data = write_preimage(preimage)
    assert read_preimage(data) == preimage
    assert read_preimage(write_preimage(replace(preimage, communications_commitment=None))).inputs == (
        secret,
    )
    for end in range(len(data)):
        with pytest.raises(ProverError) as caught:
            read_preimage(data[:end], "a preimage")
        assert str(secret) not in caught.value.message
        assert caught.value.role == "witness"


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"midnight:proof-preimage[v2]:", UnsupportedFile, "expected header tag 'midnight:proof-preimage:'"),
        (b"midnight:proof-preimage:\4", MalformedFile, "inputs: expected at most 0 items"),
        (PREIMAGES[0].read_bytes() + b"\0", MalformedFile, "preimage: 1 bytes behind its end"),
    ],
)
def test_other_data(data: bytes, kind: type[ProverError], message: str) -> None:
    with pytest.raises(kind, match=message.replace("[", r"\[")):
        read_preimage(data)


def test_scalars_are_reduced() -> None:
    preimage = Preimage((BLS12_381.r,), (), (), (), 0, None, "")
    with pytest.raises(MalformedFile, match="inputs: a scalar is not below"):
        read_preimage(write_preimage(preimage))
