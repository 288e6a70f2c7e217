"""Where a proof runs and when: placement of one (:mod:`.placement`), admission of many (:mod:`.admission`).

Decisions over plain records, and nothing else: no clock of its own, no thread, no file, no arithmetic, no
protocol. What a proof takes in memory comes as plans, what it takes in time from :class:`Times`; both know
kinds of work and parts of it by name alone.
"""

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
from gpuprover.scheduler.placement import (
    TIERS,
    Degrade,
    Device,
    JobShape,
    Placement,
    Tier,
    Times,
    choose,
    place,
    tier_of,
)

__all__ = [
    "LOSSES",
    "TIERS",
    "Assignment",
    "Decisions",
    "Degrade",
    "Device",
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
