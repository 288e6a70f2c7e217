"""Seats in the queue: order, what one tenant may have, and that nothing is lost on any way out."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpuprover.backpressure import room
from gpuprover.engine.seats import Seats
from gpuprover.errors import Timeout


def taken(seats: Seats, tenant: str, tries: int = 100) -> int:
    """How many seats a tenant gets that asks for as many as it can, and does not wait."""
    for got in range(tries):
        try:
            seats.acquire(0, tenant)
        except Timeout:
            return got
    return tries


def test_without_a_share_a_tenant_has_its_limit_and_others_the_rest() -> None:
    seats = Seats(10, 6)
    assert taken(seats, "a") == 6
    with pytest.raises(Timeout, match=r"^the queue is full for this client: 6 of its proofs wait$"):
        seats.acquire(0, "a")
    assert taken(seats, "") == 4, "who is no tenant may have all"
    for tenant in ("b", ""):
        with pytest.raises(Timeout, match=r"^the queue is full: 10 proofs wait$"):
            seats.acquire(0, tenant)
    assert (seats.active, seats.tenants) == (10, 1)
    for _ in range(6):
        seats.release("a")
    assert (seats.active, seats.tenants) == (4, 0)


def test_with_a_share_tenants_who_do_not_wait_leave_seats_to_the_next() -> None:
    seats = Seats(9, 9)
    seats.share = 0.5
    assert taken(seats, "a") == 5, "as many as stay free, and one"
    with pytest.raises(Timeout, match=r"^as many proofs of this client wait as may$"):
        seats.acquire(0, "a")
    assert taken(seats, "b") == 2
    assert taken(seats, "c") == 1
    assert taken(seats, "d") == 1
    assert seats.active == 9
    seats.release("a")
    with pytest.raises(Timeout, match="as many proofs of this client"):
        seats.acquire(0, "a")
    seats.acquire(0, "e")


def test_tenants_that_come_by_turns_get_equal_parts() -> None:
    seats, tenants, got = Seats(100, 100), ["a", "b", "c"], Counter[str]()
    seats.share = 0.5
    for _ in range(100):
        for tenant in tenants:
            got[tenant] += taken(seats, tenant, 1)
    assert got == {"a": 25, "b": 25, "c": 25}
    assert [room(free, own, 0.5) for free, own in ((26, 25), (25, 25), (4, 0), (0, 0))] == [1, 0, 2, 0]


def test_the_limit_of_a_tenant_holds_beside_its_share() -> None:
    seats = Seats(100, 3)
    seats.share = 0.5
    assert taken(seats, "a") == 3
    with pytest.raises(Timeout, match="the queue is full for this client: 3 of its proofs wait"):
        seats.acquire(0, "a")


def test_threads_that_do_not_wait_never_get_more_than_the_rule_says() -> None:
    seats = Seats(16, 16)
    seats.share = 0.5
    start = threading.Barrier(8)

    def grab(_: int) -> int:
        start.wait()
        return taken(seats, "a")

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(grab, range(8))) == 8


def test_who_waits_gets_a_seat_when_one_is_free() -> None:
    seats = Seats(1, 1)
    seats.share = 0.5
    seats.acquire(0)
    with pytest.raises(Timeout, match=r"^the queue is full: 1 proofs wait, and none of them began in"):
        seats.acquire(0.01, "a")
    assert (seats.active, seats.tenants) == (1, 0)

    async def wait() -> None:
        waits = asyncio.create_task(seats.aacquire(60, "a"))
        await asyncio.sleep(0)
        seats.release()
        await waits

    asyncio.run(wait())
    assert (seats.active, seats.tenants) == (1, 1)
    with pytest.raises(Timeout, match=r"^the queue is full for this client: 1 of its proofs wait, and none"):
        seats.acquire(0.01, "a")
    seats.release("a")
    assert (seats.active, seats.tenants) == (0, 0)
