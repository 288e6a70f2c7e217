"""Runs a command and prints its seconds and its memory, those of its children included, as one JSON object.

    python -I -S launch.py STDOUT STDERR COMMAND...

A program of its own, and a small one: on Linux a child's peak memory starts with that of the
process that forked it, and a benchmark that holds points is larger than what it measures.
"""

import json
import resource
import subprocess
import sys
import time

with open(sys.argv[1], "wb") as out, open(sys.argv[2], "wb") as errors:
    begun = time.perf_counter()
    try:
        code = subprocess.call(sys.argv[3:], stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
    except OSError as error:
        print(json.dumps({"problem": error.strerror or str(error)}))
        sys.exit()
    wall = time.perf_counter() - begun
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
unit = 1 if sys.platform == "darwin" else 1024
print(
    json.dumps(
        {
            "code": code,
            "cpu": usage.ru_utime + usage.ru_stime,
            "wall": wall,
            "peak": usage.ru_maxrss * unit,
        }
    )
)
