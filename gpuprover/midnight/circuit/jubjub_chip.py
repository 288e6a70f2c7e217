"""Not there yet."""

from __future__ import annotations

from typing import Any

from gpuprover.errors import UnsupportedFile


def point(*_: Any) -> Any:
    raise UnsupportedFile("circuit", "point", "it is not supported yet")


def point_value(*_: Any) -> Any:
    raise UnsupportedFile("circuit", "point_value", "it is not supported yet")


def add(*_: Any) -> Any:
    raise UnsupportedFile("circuit", "add", "it is not supported yet")


def multiply(*_: Any) -> Any:
    raise UnsupportedFile("circuit", "multiply", "it is not supported yet")


def generator(*_: Any) -> Any:
    raise UnsupportedFile("circuit", "generator", "it is not supported yet")
