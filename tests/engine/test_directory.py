"""Circuits of a folder by name: layouts, names that are none, changed files, keys that do not fit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from gpuprover.engine.directory import CircuitDirectory
from gpuprover.errors import CircuitNotFound, InvalidInput, MalformedFile
from gpuprover.formats.zkey import read_curve
from gpuprover.systems.groth16.documents import parse_verification_key
from gpuprover.systems.groth16.key import load_key, read_verification_key
from tests.support.paths import VECTORS

CHAIN = VECTORS / "chain5.bn254.zkey"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(CHAIN, tmp_path / "flat.zkey")
    (tmp_path / "flat.wasm").write_bytes(b"program")
    shutil.copy(VECTORS / "chain5.bn254.vkey.json", tmp_path / "flat.vkey.json")
    (tmp_path / "own").mkdir()
    shutil.copy(CHAIN, tmp_path / "own" / "own.zkey")
    (tmp_path / "plain").mkdir()
    shutil.copy(CHAIN, tmp_path / "plain" / "circuit.zkey")
    (tmp_path / "plain" / "circuit.wasm").write_bytes(b"program")
    shutil.copy(VECTORS / "chain5.bls12-381.vkey.json", tmp_path / "checked.vkey.json")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no circuit")
    (tmp_path / ".hidden.zkey").write_bytes(b"")
    (tmp_path / "a name.zkey").write_bytes(b"")
    return tmp_path


def test_every_layout(folder: Path) -> None:
    directory = CircuitDirectory(folder)
    assert directory.names() == ["checked", "flat", "own", "plain"]

    def names(circuit: str) -> list[str | None]:
        files = directory.find(circuit)
        paths = (files.key, files.wasm, files.vkey)
        return [None if path is None else os.path.relpath(path, folder) for path in paths]

    assert names("flat") == ["flat.zkey", "flat.wasm", "flat.vkey.json"]
    assert names("own") == ["own/own.zkey", None, None]
    assert names("plain") == ["plain/circuit.zkey", "plain/circuit.wasm", None]
    assert names("checked") == [None, None, "checked.vkey.json"]


def test_circuits_of_another_folder_are_found_but_not_listed(folder: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    shutil.copy(CHAIN, other / "brought.zkey")
    shutil.copy(CHAIN, other / "flat.zkey")
    for directory in (CircuitDirectory(folder), CircuitDirectory(None)):
        assert not directory.has("brought")
        listed = directory.names()
        directory.look_in(other)
        assert directory.has("brought")
        assert directory.find("brought").key == str(other / "brought.zkey")
        assert directory.names() == listed
        (other / "brought.zkey").rename(other / "again.zkey")
        assert not directory.has("brought")
        (other / "again.zkey").rename(other / "brought.zkey")
    directory = CircuitDirectory(folder)
    directory.look_in(other)
    with pytest.raises(InvalidInput, match="more than once"):
        directory.find("flat")


def test_what_is_missing_is_said_with_what_is_there(folder: Path) -> None:
    with pytest.raises(CircuitNotFound) as caught:
        CircuitDirectory(folder).find("mint")
    assert caught.value.message == (
        f"circuit 'mint': there is none of that name in {folder}, where there is checked, flat, own, plain"
    )
    for i in range(20):
        (folder / f"c{i:02}.zkey").write_bytes(b"")
    with pytest.raises(CircuitNotFound, match=r"c00, .*, c07 and 16 more$"):
        CircuitDirectory(folder).find("mint")
    with pytest.raises(CircuitNotFound, match="no folder of circuits is set"):
        CircuitDirectory(None).find("mint")
    with pytest.raises(CircuitNotFound, match="nowhere: cannot read the folder"):
        CircuitDirectory(folder / "nowhere").find("mint")


@pytest.mark.parametrize(
    "name",
    [
        "../flat",
        "own/own",
        "/etc/passwd",
        "..",
        ".",
        "",
        ".hidden",
        "a name",
        "flat\0",
        "flat\n",
        "fläche",
        "flat.",
        "a..b",
        "x" * 129,
        "x" * 120 + "!",  # in which a careless pattern looks for ever
        "~",
        "%2e%2e",
    ],
)
def test_names_that_are_none_reach_no_file(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[object] = []
    monkeypatch.setattr(CircuitDirectory, "names", lambda self: [])
    for function in ("stat", "exists", "open", "is_file"):
        monkeypatch.setattr(Path, function, lambda self, *rest, **options: touched.append(self))
    with pytest.raises(CircuitNotFound):
        CircuitDirectory(folder).find(name)
    assert touched == []


def test_names_with_dots_and_dashes(folder: Path) -> None:
    shutil.copy(CHAIN, folder / "transfer-v1.2.zkey")
    directory = CircuitDirectory(folder)
    assert directory.find("transfer-v1.2").key == str(folder / "transfer-v1.2.zkey")
    assert "transfer-v1.2" in directory.names()
    for wrong in (7, None, b"flat"):
        with pytest.raises(InvalidInput, match="expected a name"):
            directory.find(wrong)  # type: ignore[arg-type]


def test_a_circuit_that_is_there_twice_is_refused(folder: Path) -> None:
    (folder / "flat").mkdir()
    shutil.copy(CHAIN, folder / "flat" / "circuit.zkey")
    with pytest.raises(InvalidInput, match="'flat' is there more than once"):
        CircuitDirectory(folder).find("flat")
    assert "flat" in CircuitDirectory(folder).names(), "and does not hide the others"


def test_links_are_followed_as_volumes_have_them(folder: Path) -> None:
    (folder / "..data").mkdir()
    shutil.copy(CHAIN, folder / "..data" / "linked.zkey")
    (folder / "linked.zkey").symlink_to("..data/linked.zkey")
    (folder / "broken.zkey").symlink_to("nowhere.zkey")
    directory = CircuitDirectory(folder)
    assert directory.verification_key(directory.find("linked")).document["nPublic"] == 2
    with pytest.raises(CircuitNotFound):
        directory.find("broken")


def test_the_verification_key_alone_is_that_of_the_whole_key() -> None:
    for name in ("chain5.bn254.zkey", "chain5.bls12-381.zkey"):
        whole = load_key(VECTORS / name)
        assert read_verification_key(VECTORS / name) == whole.vk
        assert read_curve(VECTORS / name) is whole.curve


def test_verification_keys_come_from_their_document_or_from_the_key(folder: Path) -> None:
    directory = CircuitDirectory(folder)
    document = json.loads((VECTORS / "chain5.bn254.vkey.json").read_text())
    expected = parse_verification_key(document).digest
    assert directory.known() == {}
    for circuit in ("flat", "own", "plain"):
        known = directory.verification_key(directory.find(circuit))
        assert known.digest == expected
        assert known.document["vk_alpha_1"] == document["vk_alpha_1"]
    checked = directory.verification_key(directory.find("checked"))
    assert (checked.protocol, checked.curve, checked.n_public) == ("groth16", "bls12381", 2)
    assert checked.document["curve"] == checked.curve
    assert set(directory.known()) == {"flat", "own", "plain", "checked"}
    assert directory.known()["checked"] is checked


def test_a_verification_key_of_another_circuit_is_refused(folder: Path) -> None:
    shutil.copy(VECTORS / "chain5.bls12-381.vkey.json", folder / "flat.vkey.json")
    directory = CircuitDirectory(folder)
    with pytest.raises(MalformedFile, match=r"flat\.vkey\.json: document: it is not the verification key of"):
        directory.verification_key(directory.find("flat"))


def test_a_changed_key_is_read_again(folder: Path) -> None:
    directory = CircuitDirectory(folder)
    files = directory.find("own")
    first = directory.verification_key(files)
    assert directory.verification_key(files) is first
    shutil.copy(VECTORS / "chain5.bls12-381.zkey", folder / "own" / "new")
    os.replace(folder / "own" / "new", folder / "own" / "own.zkey")
    assert directory.verification_key(files).digest != first.digest
    os.unlink(folder / "own" / "own.zkey")
    with pytest.raises(InvalidInput, match="No such file"):
        directory.verification_key(files)
