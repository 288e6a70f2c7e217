"""Where the checkout's files lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout. A process that imports ``tests`` has it in its ``PYTHONPATH``."""
TESTS = ROOT / "tests"
VECTORS = TESTS / "vectors"
"""Keys, witnesses and proofs of small circuits, which ``make.py`` there makes."""

__all__ = ["ROOT", "TESTS", "VECTORS"]
