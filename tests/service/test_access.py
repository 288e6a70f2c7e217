"""Who may ask the service: tokens of a file, and pages of other sites."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import httpx
import pytest

from gpuprover.errors import InvalidInput
from gpuprover.service import access
from gpuprover.service.access import Tokens, check_site, is_loopback
from gpuprover.service.problems import Problem
from tests.support.service_stage import SECONDS, SUCCEED, stage

ONE, TWO = "first-token-of-the-file", "second.token~of+the/file=="


def write(path: Path, text: str) -> Path:
    """As a deployment does it: a new file takes the place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)
    return path


def test_tokens_are_read_and_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    path = write(tmp_path / "tokens", f"# of today\n\n {ONE} \r\n{TWO}\n")
    tokens = Tokens(path, clock=lambda: now)
    assert tokens.required
    assert [tokens.accept(t) for t in (ONE, TWO, "", ONE[:-1], "# of today", f" {ONE} ")] == [
        True,
        True,
    ] + 4 * [False]
    write(path, TWO)
    assert tokens.accept(ONE), "the file is looked at once a second"
    now += access.LOOK_SECONDS
    assert [tokens.accept(ONE), tokens.accept(TWO)] == [False, True]
    # An empty file revokes all; it does not open the door.
    write(path, "")
    now += access.LOOK_SECONDS
    assert tokens.required
    assert not tokens.accept(TWO)
    write(path, ONE)
    now += access.LOOK_SECONDS
    assert tokens.accept(ONE)
    with caplog.at_level(logging.WARNING):
        for damage in (lambda: write(path, f"{TWO}\nshort"), path.unlink):
            damage()
            now += access.LOOK_SECONDS
            assert [tokens.accept(ONE), tokens.accept(TWO)] == [True, False], "what was stays"
    assert caplog.text.count("the tokens stay as they were") == 2
    assert ONE not in caplog.text
    assert TWO not in caplog.text


def test_a_secret_that_kubernetes_swaps_is_seen(tmp_path: Path) -> None:
    """The file is a link into a folder that is a link, and only that one is replaced."""
    now = 0.0
    for name, token in (("one", ONE), ("two", TWO)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "tokens", token)
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "tokens").symlink_to("data/tokens")
    tokens = Tokens(tmp_path / "tokens", clock=lambda: now)
    assert tokens.accept(ONE)
    (tmp_path / "new").symlink_to("two")
    os.replace(tmp_path / "new", tmp_path / "data")
    now += access.LOOK_SECONDS
    assert [tokens.accept(ONE), tokens.accept(TWO)] == [False, True]


def test_no_token_is_needed_until_there_is_one(tmp_path: Path) -> None:
    assert not Tokens(None).required
    now = 0.0
    path = write(tmp_path / "tokens", "# none yet\n")
    tokens = Tokens(path, clock=lambda: now)
    assert not tokens.required
    write(path, ONE)
    now += access.LOOK_SECONDS
    assert tokens.required


@pytest.mark.parametrize("line", ["short", "two words in one line", "x" * 513, "ümlaut-ümlaut-ümlaut"])
def test_a_line_that_is_no_token_is_refused_and_not_shown(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "tokens", f"{ONE}\n{line}\n")
    with pytest.raises(InvalidInput, match=r"tokens: line 2: expected a token") as caught:
        Tokens(path)
    assert line not in caught.value.message
    with pytest.raises(InvalidInput, match="missing: cannot"):
        Tokens(tmp_path / "missing")


def test_with_tokens_everything_that_tells_something_wants_one(tmp_path: Path) -> None:
    path = write(tmp_path / "tokens", f"{ONE}\n{TWO}\n")
    with stage(tmp_path / "c", settings={"tokens_file": path}) as found:
        document = found.get("/openapi.json").json()
        assert document["paths"]["/v1/status"]["get"]["security"] == [{"HTTPBearer": []}]
        asked = 0
        for template, operations in document["paths"].items():
            url = template.replace("{circuit_id}", "chain").replace("{proof_id}", "0" * 32)
            for method in operations:
                for headers in (
                    {},
                    {"Authorization": f"Bearer {ONE[:-1]}x"},
                    {"Authorization": f"Basic {ONE}"},
                ):
                    answer = found.client.request(method, url, headers=headers)
                    if not template.startswith("/v1/"):
                        assert answer.status_code in (200, 404)
                        continue
                    asked += 1
                    assert answer.status_code == 401, url
                    assert answer.json()["kind"] == "Unauthorized"
                    assert answer.headers["www-authenticate"].startswith("Bearer")
        assert asked == 3 * 11
        one, two = ({"Authorization": f"Bearer {token}"} for token in (ONE, TWO))
        assert found.get("/v1/status", headers=one).status_code == 200
        # Whoever has a token may come from anywhere, and has Idempotency-Keys of its own.
        assert found.get("/v1/status", headers={**two, "Host": "prover.example"}).status_code == 200
        ids = {
            found.post(SUCCEED, wait=SECONDS, headers={**who, "Idempotency-Key": "k"}).json()["id"]
            for who in (one, two, one)
        }
        assert len(ids) == 2


def test_without_tokens_other_sites_may_not_use_it(tmp_path: Path) -> None:
    with stage(tmp_path / "c") as found:
        own = found.url.removeprefix("http://")
        for headers, kind in [
            ({}, None),
            ({"Origin": found.url}, None),
            ({"Host": f"localhost:{own.split(':')[1]}"}, None),
            ({"Origin": "https://evil.example"}, "ForeignOrigin"),
            ({"Origin": "null"}, "ForeignOrigin"),
            # A name that points here.
            ({"Host": "evil.example", "Origin": "http://evil.example"}, "ForeignHost"),
        ]:
            answer: httpx.Response = found.client.post("/v1/circuits/chain/unload", headers=headers)
            assert (answer.status_code, answer.json().get("kind")) == (403 if kind else 200, kind)


def test_a_service_for_the_network_has_any_name() -> None:
    check_site([(b"host", b"prover.example")], local=False)
    check_site([(b"host", b"prover.example"), (b"origin", b"https://prover.example")], local=False)
    with pytest.raises(Problem):
        check_site([(b"host", b"prover.example"), (b"origin", b"https://evil.example")], local=False)
    with pytest.raises(Problem):
        check_site([(b"host", b"prover.example")], local=True)


@pytest.mark.parametrize(
    ("host", "own"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "a.localhost")],
        *[(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.evil", "")],
    ],
)
def test_loopback_addresses(host: str, own: bool) -> None:
    assert is_loopback(host) is own
