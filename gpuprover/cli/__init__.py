"""The command line: ``gpuprover`` and ``python -m gpuprover``."""

from gpuprover.cli.entry import main

__all__ = ["main"]
