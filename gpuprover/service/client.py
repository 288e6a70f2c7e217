"""Asks a proving service: :class:`Client`, and :class:`AsyncClient` for tasks. Needs the extra ``client``.

Both run the same conversations: generators that yield what is to be asked and get the answers. A request for
a proof has an Idempotency-Key, so that it is sent again after a full queue or a broken connection without
being made twice.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from gpuprover.errors import EXIT_RESOURCES, InvalidInput, ProverError, Timeout, from_record
from gpuprover.witness_source import (
    InputsForm,
    WitnessBytes,
    WitnessFile,
    WitnessInputs,
    WitnessSource,
    looked_at,
)

if TYPE_CHECKING:
    import httpx

URL = "http://127.0.0.1:8080"
PATIENCE = 60.0
"""Seconds for which a request that is refused for now is sent again, where its caller sets no time."""
WAIT = 30
"""Seconds for which the service holds an answer back while a proof is made: proxies may give up later on."""
ANSWER_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0

T = TypeVar("T")
Witness = str | os.PathLike[str] | bytes | Mapping[str, Any]
Statement = tuple[Sequence[int | str], Mapping[str, Any]]


class ServiceError(ProverError):
    """The service cannot be reached, refuses the request, or answers what is none of its answers.

    Attributes:
        status: HTTP's status code; None without an answer.
    """

    exit_code = EXIT_RESOURCES

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class RemoteProof:
    """A proof that a service was asked for.

    Attributes:
        state: ``queued``, ``running``, ``succeeded``, ``failed``, ``cancelled``.
        proof: snarkjs's document, once it has succeeded.
        public_signals: decimal strings, then.
        device: that makes or made it.
        timings: seconds by phase.
        error: why it failed or was cancelled.
    """

    id: str
    circuit_id: str
    state: str
    proof: dict[str, Any] | None
    public_signals: list[str] | None
    device: str | None
    timings: dict[str, float]
    error: ProverError | None

    @property
    def done(self) -> bool:
        return self.state not in ("queued", "running")


@dataclass(frozen=True)
class _Ask:
    method: str
    path: str
    params: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = field(default=None, repr=False)
    json: Any = field(default=None, repr=False)
    seconds: float = ANSWER_SECONDS


@dataclass(frozen=True)
class _Answer:
    status: int
    retry_after: float
    content: bytes

    def document(self) -> Any:
        try:
            return json.loads(self.content)
        except ValueError:
            raise ServiceError("the service answers no JSON: is it one of gpuprover?", self.status) from None


@dataclass(frozen=True)
class _Pause:
    seconds: float


Conversation = Generator[_Ask | _Pause, "_Answer | None", T]


def _checked(answer: _Answer) -> _Answer:
    """Raises what the answer says, if it is an error."""
    if answer.status < 400:
        return answer
    document = answer.document()
    record = document if isinstance(document, dict) else {}
    kind, detail = str(record.get("kind")), str(record.get("detail"))
    error = _error({**record, "kind": kind, "detail": detail})
    # Errors of HTTP alone have no kind among ours.
    raise error if error.kind == kind else ServiceError(f"{kind}: {detail}", answer.status)


def _error(problem: Mapping[str, Any]) -> ProverError:
    """The error that a problem document describes."""
    return from_record({"kind": problem["kind"], "message": problem["detail"], "role": problem.get("role")})


def _ask(ask: _Ask) -> Conversation[Any]:
    """The document of an answer."""
    answer = yield ask
    assert answer is not None
    return _checked(answer).document()


def _insist(ask: _Ask, end: float) -> Conversation[Any]:
    """:func:`_ask`, again and again while the service is full, shuts down or cannot be reached."""
    pause = FIRST_PAUSE
    while True:
        late, wanted = time.monotonic() + pause > end, 0.0
        try:
            answer = yield ask
            assert answer is not None
            if late or answer.status not in (429, 503):
                return _checked(answer).document()
            wanted = answer.retry_after
        except ServiceError as error:
            if late or error.status is not None:
                raise
        yield _Pause(min(max(pause, wanted), LONGEST_PAUSE, max(0.0, end - time.monotonic())))
        pause = min(2 * pause, LONGEST_PAUSE)


def _submit(
    circuit: str, witness: Witness, timeout: float | None, priority: int, key: str | None, wait: int
) -> Conversation[RemoteProof]:
    kind, content = _body(looked_at(witness, InputsForm.SERVICE))
    params = {"priority": priority, **({} if timeout is None else {"timeout": timeout})}
    headers = {"Content-Type": kind, "Idempotency-Key": key or uuid.uuid4().hex, "Prefer": f"wait={wait}"}
    end = time.monotonic() + (PATIENCE if timeout is None else timeout)
    path = f"/v1/circuits/{quote(circuit, safe='')}/proofs"
    ask = _Ask("POST", path, params, headers, seconds=wait + ANSWER_SECONDS, **content)
    return _proof((yield from _insist(ask, end)))


def _body(witness: WitnessSource) -> tuple[str, dict[str, Any]]:
    """A request's content type, and its ``json`` or ``content``."""
    if isinstance(witness, WitnessInputs):
        return "application/json", {"json": {"inputs": witness.inputs}}
    if isinstance(witness, WitnessBytes):
        content = bytes(witness.content)
    elif isinstance(witness, WitnessFile):
        content = _read(witness.path)
    else:
        raise InvalidInput("witness: expected a path, the bytes of a .wtns or {'inputs': {...}}")
    return "application/octet-stream", {"content": content}


def _prove(
    circuit: str, witness: Witness, timeout: float | None, priority: int, key: str | None
) -> Conversation[RemoteProof]:
    end = None if timeout is None else time.monotonic() + timeout
    found = yield from _submit(circuit, witness, timeout, priority, key, WAIT)
    while not found.done:
        if end is not None and time.monotonic() > end + WAIT:
            raise Timeout(f"the service did not end proof {found.id} within its {timeout} s")
        found = yield from _get(found.id, WAIT)
    if found.error is not None:
        raise found.error
    return found


def _get(id: str, wait: int) -> Conversation[RemoteProof]:
    ask = _Ask("GET", _path("proofs", id), headers={"Prefer": f"wait={wait}"}, seconds=wait + ANSWER_SECONDS)
    # A service that was restarted has no such proof; one that cannot be reached for a moment may.
    return _proof((yield from _insist(ask, time.monotonic() + PATIENCE)))


def _cancel(id: str) -> Conversation[RemoteProof]:
    return _proof((yield from _ask(_Ask("DELETE", _path("proofs", id)))))


def _verify(circuit: str, signals: Sequence[int | str], proof: Mapping[str, Any]) -> Conversation[bool]:
    body = {"circuit_id": circuit, "public_signals": list(signals), "proof": dict(proof)}
    answer = yield from _insist(_Ask("POST", "/v1/verify", json=body), time.monotonic() + PATIENCE)
    return bool(answer["valid"])


def _verify_batch(circuit: str, statements: Sequence[Statement]) -> Conversation[list[bool]]:
    if not statements:
        return []
    proofs = [{"public_signals": list(signals), "proof": dict(proof)} for signals, proof in statements]
    answer = yield _Ask("POST", "/v1/verify/batch", json={"circuit_id": circuit, "proofs": proofs})
    assert answer is not None
    lines = [_Answer(200, 0.0, line).document() for line in _checked(answer).content.splitlines()]
    if lines and lines[-1].get("error"):
        error = lines[-1]["error"]
        raise _error(error)
    if len(lines) != len(statements):
        raise ServiceError(f"{len(lines)} answers to {len(statements)} proofs", 200)
    return [bool(line["valid"]) for line in lines]


def _circuits() -> Conversation[list[str]]:
    found = yield from _ask(_Ask("GET", "/v1/circuits"))
    return [circuit["id"] for circuit in found["circuits"]]


def _document(method: str, *parts: str, seconds: float = ANSWER_SECONDS, **params: Any) -> Conversation[Any]:
    return (yield from _ask(_Ask(method, _path(*parts), params, seconds=seconds)))


def _ready() -> Conversation[bool]:
    try:
        answer = yield _Ask("GET", "/readyz")
    except ServiceError:
        return False
    return answer is not None and answer.status == 200


def _path(*parts: str) -> str:
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read: {error.strerror}", path=os.fspath(path)) from None


def _proof(document: Any) -> RemoteProof:
    try:
        error = document["error"]
        return RemoteProof(
            **{f: document[f] for f in RemoteProof.__dataclass_fields__ if f != "error"},
            error=None if error is None else _error(error),
        )
    except (KeyError, TypeError):
        raise ServiceError("the answer is no proof: is it a service of gpuprover?", 200) from None


def _httpx() -> Any:
    try:
        import httpx
    except ImportError:
        raise InvalidInput("the client needs httpx: pip install 'gpuprover[client]'") from None
    return httpx


def _options(url: str, token: str | None) -> dict[str, Any]:
    """Of httpx's clients. No environment: proxies and credentials for others are none of ours."""
    httpx = _httpx()
    if not isinstance(url, str):
        raise InvalidInput(f"url: expected text, found {type(url).__name__}")
    if token is not None and not (isinstance(token, str) and token.isascii() and token.isprintable()):
        raise InvalidInput("token: expected text of printable ASCII characters")
    try:
        httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise InvalidInput(f"url: {error}") from None
    return {
        "base_url": url,
        "headers": {} if token is None else {"Authorization": f"Bearer {token}"},
        "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0),
        "trust_env": False,
    }


def _request(ask: _Ask) -> dict[str, Any]:
    import httpx

    return {
        "method": ask.method,
        "url": ask.path,
        "params": ask.params,
        "headers": ask.headers,
        "content": ask.content,
        "json": ask.json,
        "timeout": httpx.Timeout(ask.seconds, connect=10.0),
    }


def _answer(response: httpx.Response) -> _Answer:
    wanted = response.headers.get("retry-after", "")
    return _Answer(response.status_code, float(wanted) if wanted.isdigit() else 0.0, response.content)


def _failure(url: str, error: httpx.HTTPError) -> ProverError:
    """What it means that there is no answer; what was never sent needs not be tried again."""
    import httpx

    name = type(error).__name__
    if isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol):
        return InvalidInput(
            f"{url}: the request cannot be sent: {name}: expected http://HOST:PORT, and a key and "
            "a token of printable characters"
        )
    return ServiceError(f"{url}: no answer: {name}")


class Client:
    """A proving service, for threads: ``with Client(url) as client: client.prove("transfer", "w.wtns")``.

    Args:
        url: the service's URL.
        token: one of its bearer tokens, where it has any.

    All methods raise the errors of :mod:`gpuprover.errors` that the service answers, by their kinds; and
    :class:`ServiceError` where it cannot be reached, or refuses for a reason that HTTP alone knows. While it
    is full or restarts, proofs and verifications are asked for again, for a minute or for their ``timeout``.
    """

    def __init__(self, url: str = URL, *, token: str | None = None) -> None:
        self._url = url
        self._http: httpx.Client = _httpx().Client(**_options(url, token))

    def _run(self, conversation: Conversation[T]) -> T:
        import httpx

        try:
            step = next(conversation)
            while True:
                if isinstance(step, _Pause):
                    time.sleep(step.seconds)
                    step = conversation.send(None)
                    continue
                try:
                    answer = _answer(self._http.request(**_request(step)))
                except httpx.HTTPError as error:
                    step = conversation.throw(_failure(self._url, error))
                else:
                    step = conversation.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def prove(
        self,
        circuit: str,
        witness: Witness,
        *,
        timeout: float | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
    ) -> RemoteProof:
        """A proof.

        Args:
            witness: path of a ``.wtns``, its bytes, or ``{"inputs": {...}}`` where the service has the
                circuit's witness program.
            timeout: seconds from now on; without, the service's own limit.
            priority: -1000 to 1000; a higher one goes first.
            idempotency_key: the same one with the same witness is the same proof; by default each call's own.
        """
        return self._run(_prove(circuit, witness, timeout, priority, idempotency_key))

    def submit(
        self,
        circuit: str,
        witness: Witness,
        *,
        timeout: float | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
    ) -> RemoteProof:
        """:meth:`prove` without waiting for the proof."""
        return self._run(_submit(circuit, witness, timeout, priority, idempotency_key, 0))

    def get(self, id: str, *, wait: int = 0) -> RemoteProof:
        """How a proof is; ``wait``: seconds to wait for its end."""
        return self._run(_get(id, wait))

    def cancel(self, id: str) -> RemoteProof:
        return self._run(_cancel(id))

    def verify(self, circuit: str, public_signals: Sequence[int | str], proof: Mapping[str, Any]) -> bool:
        return self._run(_verify(circuit, public_signals, proof))

    def verify_batch(self, circuit: str, statements: Sequence[Statement]) -> list[bool]:
        """For each (public signals, proof) whether it holds; a damaged one is False."""
        return self._run(_verify_batch(circuit, statements))

    def circuits(self) -> list[str]:
        return self._run(_circuits())

    def circuit(self, id: str) -> dict[str, Any]:
        """``id``, ``loaded``, ``curve``, ``public_signals``."""
        return self._run(_document("GET", "circuits", id))

    def verification_key(self, circuit: str) -> dict[str, Any]:
        return self._run(_document("GET", "circuits", circuit, "verification-key"))

    def load(self, circuit: str, *, timeout: float = 60.0) -> dict[str, Any]:
        """Has its key loaded, and kept."""
        seconds = timeout + ANSWER_SECONDS
        return self._run(_document("POST", "circuits", circuit, "load", seconds=seconds, timeout=timeout))

    def unload(self, circuit: str) -> dict[str, Any]:
        return self._run(_document("POST", "circuits", circuit, "unload"))

    def status(self) -> dict[str, Any]:
        return self._run(_document("GET", "status"))

    def ready(self) -> bool:
        """Whether it takes proofs; False where it cannot be reached."""
        return self._run(_ready())

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """:class:`Client` for tasks."""

    def __init__(self, url: str = URL, *, token: str | None = None) -> None:
        self._url = url
        self._http: httpx.AsyncClient = _httpx().AsyncClient(**_options(url, token))

    async def _run(self, conversation: Conversation[T]) -> T:
        import httpx

        try:
            step = next(conversation)
            while True:
                if isinstance(step, _Pause):
                    await asyncio.sleep(step.seconds)
                    step = conversation.send(None)
                    continue
                try:
                    answer = _answer(await self._http.request(**_request(step)))
                except httpx.HTTPError as error:
                    step = conversation.throw(_failure(self._url, error))
                else:
                    step = conversation.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def prove(
        self,
        circuit: str,
        witness: Witness,
        *,
        timeout: float | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
    ) -> RemoteProof:
        return await self._run(_prove(circuit, witness, timeout, priority, idempotency_key))

    async def submit(
        self,
        circuit: str,
        witness: Witness,
        *,
        timeout: float | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
    ) -> RemoteProof:
        return await self._run(_submit(circuit, witness, timeout, priority, idempotency_key, 0))

    async def get(self, id: str, *, wait: int = 0) -> RemoteProof:
        return await self._run(_get(id, wait))

    async def cancel(self, id: str) -> RemoteProof:
        return await self._run(_cancel(id))

    async def verify(
        self, circuit: str, public_signals: Sequence[int | str], proof: Mapping[str, Any]
    ) -> bool:
        return await self._run(_verify(circuit, public_signals, proof))

    async def verify_batch(self, circuit: str, statements: Sequence[Statement]) -> list[bool]:
        return await self._run(_verify_batch(circuit, statements))

    async def circuits(self) -> list[str]:
        return await self._run(_circuits())

    async def circuit(self, id: str) -> dict[str, Any]:
        return await self._run(_document("GET", "circuits", id))

    async def verification_key(self, circuit: str) -> dict[str, Any]:
        return await self._run(_document("GET", "circuits", circuit, "verification-key"))

    async def load(self, circuit: str, *, timeout: float = 60.0) -> dict[str, Any]:
        seconds = timeout + ANSWER_SECONDS
        return await self._run(
            _document("POST", "circuits", circuit, "load", seconds=seconds, timeout=timeout)
        )

    async def unload(self, circuit: str) -> dict[str, Any]:
        return await self._run(_document("POST", "circuits", circuit, "unload"))

    async def status(self) -> dict[str, Any]:
        return await self._run(_document("GET", "status"))

    async def ready(self) -> bool:
        return await self._run(_ready())

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
