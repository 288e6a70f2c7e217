"""Every parser takes time in proportion to its document, and memory within what is told before."""

from __future__ import annotations

import numpy as np  # noqa: F401 - before memory is measured
import pytest

from gpuprover.formats.json_files import parse_json, parsed_size_bound
from tests.fuzz.growth import (
    DOCUMENT_FAMILIES,
    JSON_FAMILIES,
    READERS,
    assert_linear,
    file_families,
    peak,
)

pytestmark = pytest.mark.fuzz

FILES = file_families()
JSON_SECONDS = 2e-6
"""For each byte of JSON, ten times what a quiet machine takes."""


def parse(data: bytes) -> object:
    return parse_json(data, "document")


@pytest.fixture(scope="module", autouse=True)
def parsed_once() -> None:
    """What is imported and kept at the first use counts for nobody."""
    parse(b"[" + b"1," * 99_999 + b"1]")


@pytest.mark.parametrize("size", [200, 4_000])
def test_memory_of_short_json_stays_within_its_bound(size: int) -> None:
    for name, make in JSON_FAMILIES.items():
        document = make(size)
        assert peak(parse, document) <= parsed_size_bound(document), name


@pytest.mark.parametrize("name", ["objects in objects", "nested lists", "closed too often", "one wide text"])
def test_memory_of_json_stays_within_its_bound(name: str) -> None:
    document = JSON_FAMILIES[name](200_000)
    assert peak(parse, document) <= parsed_size_bound(document)


@pytest.mark.parametrize("name", ["the last name twice", "empty lists", "backslashes"])
def test_time_of_json_grows_with_its_size(name: str) -> None:
    assert_linear(parse, JSON_FAMILIES[name], 20_000, JSON_SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", JSON_FAMILIES)
def test_time_and_memory_of_long_json(name: str) -> None:
    assert_linear(parse, JSON_FAMILIES[name], 100_000, JSON_SECONDS)
    for size in (300_000, 1_200_000):
        document = JSON_FAMILIES[name](size)
        assert peak(parse, document) <= parsed_size_bound(document)


@pytest.mark.parametrize("name", DOCUMENT_FAMILIES)
def test_time_of_documents_grows_with_their_size(name: str) -> None:
    make, check = DOCUMENT_FAMILIES[name]
    assert_linear(check, make, 20_000, 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_time_and_memory_of_binary_files(name: str) -> None:
    """A file is mapped: what is taken besides is in proportion to it, even where it is refused."""
    kind, make = FILES[name]
    read = READERS[kind]
    assert_linear(read, make, 50_000, 1e-6)
    document = make(400_000)
    assert peak(read, document) <= (1 << 20) + 16 * len(document)


@pytest.mark.parametrize("name", [name for name in FILES if "many sections" in name])
def test_time_and_memory_of_some_binary_files(name: str) -> None:
    kind, make = FILES[name]
    document = make(100_000)
    assert_linear(READERS[kind], make, 12_500, 1e-6)
    assert peak(READERS[kind], document) <= (1 << 20) + 16 * len(document)
