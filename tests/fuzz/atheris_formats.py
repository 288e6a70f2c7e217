"""Coverage-guided fuzzing of the parsers, for as long as one likes (not part of any suite).

    pip install atheris
    PYTHONPATH=. python tests/fuzz/atheris_formats.py -max_total_time=600

An input is a choice of a seed file and mutations of it, or after a first byte of 255 the
bytes of a file as they are. Anything but a typed error or a sound parse is a crash.
"""

from __future__ import annotations

import sys

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed: pip install atheris")

with atheris.instrument_imports(include=["gpuprover"]):
    from tests.fuzz.mutations import MUTATIONS, SEEDS, check, mutated

NAMES, OPERATIONS = list(SEEDS), list(MUTATIONS)


def one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    choice = provider.ConsumeIntInRange(0, 255)
    name = NAMES[choice % len(NAMES)]
    if choice == 255:
        name = NAMES[provider.ConsumeIntInRange(0, len(NAMES) - 1)]
        check(name, provider.ConsumeBytes(provider.remaining_bytes()))
        return
    mutations = [
        (
            OPERATIONS[provider.ConsumeIntInRange(0, len(OPERATIONS) - 1)],
            provider.ConsumeUInt(4),
            provider.ConsumeUInt(8),
        )
        for _ in range(provider.ConsumeIntInRange(1, 6))
    ]
    check(name, mutated(SEEDS[name], mutations))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
