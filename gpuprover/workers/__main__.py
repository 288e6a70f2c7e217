"""``python -m gpuprover.workers DESCRIPTOR PARENT``: a worker, as a supervisor starts it."""

import sys

from gpuprover.workers.worker import main

if __name__ == "__main__":
    main(sys.argv[1:])
