"""The status page in a browser: what it shows, that its policy lets it run, and nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from tests.support.service_stage import SECONDS, SLOW, SUCCEED, WRONG, Stage, stage

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTH, HEIGHT = 1180, 1000


def browse(tmp_path: Path, url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Loads a page, lets its script run for five seconds of its own time, and ends."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    command = [
        *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--no-proxy-server"),
        *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--hide-scrollbars"),
        *(f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=5000", *options, url),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


def pixels(path: Path) -> tuple[int, int, set[bytes]]:
    """Width, height and colours of a PNG with 8 bits a channel; W3C, PNG, sections 5, 7 and 9."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height, depth, kind, *_, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    assert depth == 8
    assert not interlaced
    size = {2: 3, 6: 4}[kind]
    content, at = b"", 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] == b"IDAT":
            content += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw, colours, line = zlib.decompress(content), set(), bytearray(width * size)
    for row in range(height):
        begin = row * (width * size + 1)
        how, new = raw[begin], bytearray(raw[begin + 1 : begin + 1 + width * size])
        if how:
            for i, value in enumerate(new):
                left = new[i - size] if i >= size else 0
                corner = line[i - size] if i >= size else 0
                guess = (left, line[i], (left + line[i]) // 2, paeth(left, line[i], corner))[how - 1]
                new[i] = (value + guess) & 255
        line = new
        colours |= {bytes(line[i : i + 3]) for i in range(0, len(line), size * 3)}
    return width, height, colours


def paeth(left: int, up: int, corner: int) -> int:
    guess = left + up - corner
    return min((left, up, corner), key=lambda value: abs(guess - value))


def busy(found: Stage) -> None:
    """Three proofs that have ended, two that run."""
    for witness in (SUCCEED, WRONG, SUCCEED):
        found.post(witness, wait=SECONDS)
    for _ in range(2):
        found.post(SLOW)
    end = time.monotonic() + SECONDS
    while found.get("/v1/status").json()["active_jobs"] != 2:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_page_has_all_it_needs_in_itself(tmp_path: Path) -> None:
    with stage(tmp_path / "c") as found:
        answer = found.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", answer.text)
    assert all(link.startswith("data:") for link in links), links
    assert not re.search(r"<[^>]+\s(?:style|on\w+)=", answer.text), "the policy forbids those"
    # Text from the service is never taken for markup.
    assert "innerHTML" not in answer.text


def test_a_browser_shows_the_queue_the_workers_and_the_latest_proofs(tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    with stage(tmp_path / "c") as found:
        busy(found)
        shown = browse(tmp_path, found.url, f"--screenshot={picture}", "--dump-dom")
        status = found.get("/v1/status").json()
    page = shown.stdout
    assert "Refused to" not in shown.stderr
    assert "Uncaught" not in shown.stderr
    assert re.search(r'id="state"[^>]*>ready<', page)
    assert re.search(r'id="active"><span>2</span><small> proofs<', page)
    assert re.search(r'id="queued"><span>0</span><small> of 100 places<', page)
    assert page.count('<path d="M') == 7, "three curves, their areas, and the mark of the memory limit"
    for latest in status["latest_proofs"]:
        assert latest["id"] in page
    assert page.count(">succeeded</span>") == 2
    assert page.count(">failed</span>") == 1
    assert "<td>processor</td>" in page
    width, height, colours = pixels(picture)
    assert (width, height) == (WIDTH, HEIGHT)
    assert bytes.fromhex("4f46e5") in colours, "the curves"
    assert bytes.fromhex("dcf3e3") in colours, "what is well"
    assert bytes.fromhex("fbdfdf") in colours, "what has failed"


def test_with_tokens_it_asks_for_one(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token-of-24-characters")
    with stage(tmp_path / "c", settings={"tokens_file": tmp_path / "tokens"}) as found:
        page = browse(tmp_path, found.url, "--dump-dom").stdout
    assert re.search(r'id="state"[^>]*>locked<', page)
    assert re.search(r'id="ask" class="notice warn">', page), "it is not hidden"
