"""A pytest plugin: kernels come from images, and there is no Numba to fall back on."""

from __future__ import annotations

import sys

from gpuprover.cpu import image

assert image.use(), "no image for every curve"
for package in ("numba", "llvmlite"):
    sys.modules[package] = None  # type: ignore[assignment]  # an import of it fails
