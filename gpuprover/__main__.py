"""``python -m gpuprover``."""

import sys

from gpuprover.cli import main

if __name__ == "__main__":
    sys.exit(main())
