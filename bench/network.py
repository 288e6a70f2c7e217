"""A small network of nodes, each an engine in a process of its own, that exchange proofs.

=========================  =========  ================================================================
node                       policy     does
=========================  =========  ================================================================
``seed``                   ``off``    passes messages on; verifies what it gets
``prover-1``, ``-2``       ``eager``  prove a statement each round
``idle-1``, ``-2``         ``lazy``   could prove, and never do
``passive``                ``off``    verifies alone
``coordinator``            ``eager``  has two workers, and proves several statements at once each round
=========================  =========  ================================================================

Every proof goes to every other node, which verifies it in its verifier process. The memory of all processes
is sampled from the first start to the last stop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpuprover.job import Job

from .measure import Failed
from .processes import Node, Sampler, by_role, settled
from .rows import OURS, Row, Rows, significant


@dataclass(frozen=True)
class Member:
    """A node of the network: its policy, the proofs that it makes each round, and its workers."""

    name: str
    policy: str
    proofs: int = 0
    workers: int = 1


MEMBERS = (
    Member("seed", "off"),
    Member("prover-1", "eager", proofs=1),
    Member("prover-2", "eager", proofs=1),
    Member("idle-1", "lazy"),
    Member("idle-2", "lazy"),
    Member("passive", "off"),
    Member("coordinator", "eager", proofs=4, workers=2),
)


@dataclass(frozen=True)
class Shape:
    """What runs in the network.

    Attributes:
        keys: folder with the circuit's key and witness; the same files for all nodes.
        circuit, name: the circuit's name there, and in words.
        rounds: rounds of proofs and their verification.
        threads: threads of each node.
    """

    keys: Path
    circuit: str
    name: str
    rounds: int
    threads: int
    members: Sequence[Member] = MEMBERS

    def settings(self, member: Member) -> dict[str, Any]:
        return {
            "circuit_keys_path": str(self.keys),
            "threads": self.threads,
            "preload_circuits": [self.circuit] if member.policy == "eager" else [],
            "policy": member.policy,
            "min_workers": member.workers if member.policy == "eager" else 0,
            "max_workers": member.workers,
            "verifier": "process",
        }


def run(shape: Shape, rows: Rows, job: Job, log: Path) -> Sampler:
    """Starts the nodes, lets them exchange proofs, and adds a row for each; the sampler has all samples.

    Raises:
        Failed: a node did not get ready, failed, or found a proof of another to be wrong.
    """
    with Sampler() as sampler, ExitStack() as stack:
        nodes: dict[str, Node] = {}
        with job.phase("start the network"):
            for i, member in enumerate(shape.members):
                job.check()
                node = Node(member.name, shape.settings(member), log, sampler)
                nodes[member.name] = stack.enter_context(node)
                job.report((i + 1) / len(shape.members))
        with job.phase("exchange proofs"):
            for i in range(shape.rounds):
                job.check()
                _round(shape, nodes)
                job.report((i + 1) / shape.rounds)
        held = settled(sampler)
        for member in shape.members:
            node = nodes[member.name]
            row: Row = {
                "operation": "network",
                "implementation": OURS,
                "mode": member.policy,
                "node": member.name,
                "circuit": shape.name,
                "workers": member.workers,
                "threads": shape.threads,
                "rounds": shape.rounds,
                "ready_s": significant(node.ready),
                "proofs": node.proofs,
                "verifications": node.verified,
            }
            rows.add({**row, "after": by_role(s for s in held if s.node == member.name)})
    return sampler


def _round(shape: Shape, nodes: Mapping[str, Node]) -> None:
    """Every active node proves, all at once; then every node verifies what the others made."""
    active = [member for member in shape.members if member.proofs]
    for member in active:
        nodes[member.name].send(
            do="prove",
            circuit=shape.circuit,
            witness=str(shape.keys / f"{shape.circuit}.wtns"),
            count=member.proofs,
            at_once=True,
        )
    made = {member.name: nodes[member.name].answer() for member in active}
    for author, answer in made.items():
        others = [node for name, node in nodes.items() if name != author]
        for node in others:
            node.send(
                do="verify",
                circuit=shape.circuit,
                proof=answer["proof"],
                public_signals=answer["public_signals"],
            )
        for node in others:
            if node.answer()["valid"] != 1:
                raise Failed(f"{node.name}: a proof of {author} does not hold")
