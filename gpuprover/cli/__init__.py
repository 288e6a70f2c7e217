"""The command line: ``gpuprover`` and ``python -m gpuprover``.

:mod:`.entry` is the process around a command: arguments, signals, and every failure as one line and an exit
code. :mod:`.parser` has the commands and their arguments, and imports nothing that is slow to import.
:mod:`.commands`, :mod:`.doctor`, :mod:`.midnight`, :mod:`.midnight_serve`, :mod:`.serve`, :mod:`.sizing` and
:mod:`.stdin_worker` (jobs from standard input) hold the commands: arguments in, a call of the library, an
answer out. :mod:`.context` gives each its settings, and :mod:`.console` writes: results to stdout, everything
else to stderr.
"""

from gpuprover.cli.entry import main

__all__ = ["main"]
