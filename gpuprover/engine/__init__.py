"""The prover engine: circuits by name, a bounded queue, proofs where they are best made, and degradation.

:mod:`.prover` is what users see, with :mod:`.terms` and :mod:`.status`; :mod:`.driver` is its thread.
:mod:`.dispatch` has the way of each job, over the scheduler and an executor, and under its one lock

- :mod:`.entrance`: whether jobs are taken; :mod:`.seats`: the bounded queue, and a tenant's part of it,
- :mod:`.loading`: circuits that are loaded, and jobs that wait for others,
- :mod:`.sharing`: kept proofs, and one proof for equal witnesses,
- :mod:`.device_queue`: jobs that wait for a device; :mod:`.offer`: devices that there are,
- :mod:`.headroom`: memory that is left, and runs that wait for it,
- :mod:`.runs`: runs, from their start to their end and what follows it,
- :mod:`.timers`: actions that are due; :mod:`.records`: what these modules hand to each other.

None of them has a thread or a clock: tests drive the dispatcher by hand, and in a prover the driver calls
``step``. The scheduler decides where and when a proof runs, and what follows a failure. Files, garbage and
callbacks are dealt with outside the lock, and an executor's reports are only appended to a queue, so that
neither waits for the other.

:mod:`.directory` finds circuits; :mod:`.local` makes proofs in this process; :mod:`.verification` verifies by
the digests of keys. A prover that is forgotten closes itself; those that are left at the interpreter's exit
are closed, and their workers end.
"""

from gpuprover.engine.proof_job import JobState, ProofJob
from gpuprover.engine.prover import Prover, acreate_prover, create_prover
from gpuprover.engine.status import ProverStatus

__all__ = ["JobState", "ProofJob", "Prover", "ProverStatus", "acreate_prover", "create_prover"]
