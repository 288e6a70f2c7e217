"""The prover engine: circuits by name, a bounded queue, proofs where they are best made, and degradation.

:mod:`.prover` is what users see. It finds a circuit's files (:mod:`.directory`), takes a seat in the bounded
queue (:mod:`.seats`) on the caller's terms (:mod:`.terms`), and hands a :class:`~.proof_job.ProofJob` to the
dispatcher.

:mod:`.dispatch` knows where each job is: it waits for its key (:mod:`.loading`), for the same proof made for
another job (:mod:`.sharing`), for a device that the executor offers (:mod:`.offer`) and the scheduler
grants, for memory (:mod:`.headroom`), or it runs. The dispatcher has a lock and a queue of events, but
neither thread nor clock (:mod:`.timers`): tests drive it by hand, and in a prover the thread of
:mod:`.driver` calls ``step``. The scheduler decides where and when a proof runs, and what follows a failure.
Files, garbage and callbacks are dealt with outside the lock, and what an executor reports is only appended
to the queue, so that neither waits for the other.

Executors are :class:`gpuprover.workers.WorkerPool` and, in threads of this process, :mod:`.local`.
:mod:`.verification` hands verification keys to the verifier's process by their digests. :mod:`.status` and
:mod:`.records` are what is looked at from outside, and what the modules hand to each other. A prover that is
forgotten closes itself; those that are left at the interpreter's exit are closed, and their workers end.
"""

from gpuprover.engine.proof_job import JobState, ProofJob
from gpuprover.engine.prover import Prover, acreate_prover, create_prover
from gpuprover.engine.status import ProverStatus

__all__ = ["JobState", "ProofJob", "Prover", "ProverStatus", "acreate_prover", "create_prover"]
