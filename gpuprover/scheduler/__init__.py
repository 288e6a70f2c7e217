"""Where a proof runs and when: placement of one (:mod:`.placement`), admission of many (:mod:`.admission`).

Decisions over plain records, and nothing else: no clock of its own, no thread, no file, no arithmetic, no
proof system. Memory comes as plans (:class:`~gpuprover.demand.MemoryPlan`, by kind of device, the best
first), time from :class:`Times`, which :mod:`gpuprover.calibration` has measured or taken from other
machines; both know kinds of work and parts of it by name alone. Every placement carries its reason in words.

``choose`` answers ``--device auto`` for one proof. :class:`Scheduler` decides for many that wait: no limit
is passed, nobody starves, nothing is lost. Tenants, and circuits of each, share by start-time fair queueing;
priorities order a tenant's proofs and rise with waiting; a device that a proof waits for is booked. A proof
that ran out of memory comes down a ladder: alone, without tables, in chunks, on the CPU. Its caller owns
clock, threads and processes, and calls ``poll``, ``finished``, ``cancel`` and ``device_lost``, so that the
tests are simulations.
"""

from typing import TYPE_CHECKING, Any

from gpuprover.scheduler.placement import (
    TIERS,
    Degrade,
    DeviceInfo,
    JobShape,
    Placement,
    Tier,
    Times,
    choose,
    place,
    tier_of,
)

if TYPE_CHECKING:
    from gpuprover.scheduler.admission import (
        LOSSES,
        Assignment,
        Decisions,
        Outcome,
        Scheduler,
        State,
        Ticket,
        Verdict,
    )

__all__ = [
    "LOSSES",
    "TIERS",
    "Assignment",
    "Decisions",
    "Degrade",
    "DeviceInfo",
    "JobShape",
    "Outcome",
    "Placement",
    "Scheduler",
    "State",
    "Ticket",
    "Tier",
    "Times",
    "Verdict",
    "choose",
    "place",
    "tier_of",
]


def __getattr__(name: str) -> Any:
    """Admission is imported when it is first asked for: one proof does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gpuprover.scheduler import admission

    return getattr(admission, name)
