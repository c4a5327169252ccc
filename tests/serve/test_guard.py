"""Who may ask, from where, how much and how slowly: a line of the safety table each."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest

from klein_cli.serve import guard
from klein_cli.serve.guard import OWNER, Guard, Rules
from klein_cli.serve.log import Log
from klein_cli.serve.metrics import Metrics

KEY = "k" * 20


class Answer:
    """What a guarded application answered."""

    def __init__(self, messages: list[Any], reached: bool) -> None:
        self.status = messages[0]["status"]
        self.headers = {k.decode(): v.decode() for k, v in messages[0]["headers"]}
        self.reached = reached


def ask(
    rules: Rules | None = None,
    *,
    method: str = "GET",
    path: str = "/v1/models",
    headers: dict[str, str] | None = None,
    body: Iterator[bytes] | None = None,
    owner: bool = False,
    log: Log | None = None,
) -> Answer:
    sent: list[Any] = []
    reached = []
    pieces = list(body or [b""])

    async def receive() -> Any:
        if not pieces:
            await asyncio.sleep(5)
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    said = {"host": "localhost:80", **(headers or {})}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "scheme": "http",
        "headers": [(k.encode(), v.encode()) for k, v in said.items()],
        "state": {OWNER: owner},
    }
    guarded = Guard(app, rules or Rules(), Metrics(), log or Log(quiet=True))
    asyncio.run(guarded(scope, receive, send))
    return Answer(sent, bool(reached))


@pytest.mark.parametrize("host", ["localhost", "localhost:7866", "127.0.0.1:1", "[::1]:80"])
def test_the_server_is_called_by_names_of_this_machine(host: str) -> None:
    assert ask(headers={"host": host}).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "", "127.0.0.1.nip"])
def test_dns_rebinding_a_name_that_is_not_ours_is_refused(host: str) -> None:
    """CVE-2024-28224: a web page whose name resolves to 127.0.0.1 could use the server."""
    answer = ask(headers={"host": host})
    assert (answer.status, answer.reached) == (421, False)


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "https://localhost:80"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_csrf_a_page_of_another_site_may_not_write(method: str, headers: dict[str, str]) -> None:
    """CVE-2024-10481, and CVE-2026-27482, whose guard forgot DELETE."""
    answer = ask(method=method, headers=headers)
    assert (answer.status, answer.reached) == (403, False)


def test_the_servers_own_page_may_write() -> None:
    same = {"origin": "http://localhost:80", "sec-fetch-site": "same-origin"}
    assert ask(method="POST", headers=same).status == 200


def test_cors_is_closed_but_for_the_origins_that_were_named() -> None:
    headers = {"origin": "https://a.example", "sec-fetch-site": "cross-site"}
    closed = ask(headers=headers)
    assert "access-control-allow-origin" not in closed.headers
    rules = Rules(origins=("https://a.example",))
    opened = ask(rules, method="POST", headers=headers)
    assert opened.status == 200
    assert opened.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-credentials" not in opened.headers
    other = ask(rules, method="POST", headers={"origin": "https://b.example"})
    assert other.status == 403


def test_options_is_answered_without_opening_anything() -> None:
    """SillyTavern asks so whether the server is there."""
    answer = ask(method="OPTIONS", headers={"origin": "http://evil.example"})
    assert (answer.status, answer.reached) == (204, False)
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {KEY}", 200),
        ("Bearer wrong", 401),
        (f"Basic {KEY}", 401),
        (KEY, 401),
        ("", 401),
        ("Bearer é", 401),
    ],
)
def test_with_keys_one_of_them_is_needed(header: str, status: int) -> None:
    rules = Rules(hosts=None, keys=("x" * 20, KEY))
    assert ask(rules, headers={"authorization": header, "host": "any"}).status == status


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, by the function that is made for it, whichever is right."""
    compared = []
    real = guard.hmac.compare_digest
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
    ask(Rules(keys=(KEY, "x" * 20)), headers={"authorization": f"Bearer {KEY}"})
    assert compared == [KEY.encode(), b"x" * 20]


def test_health_needs_no_key_and_metrics_do() -> None:
    rules = Rules(keys=(KEY,))
    assert [ask(rules, path=path).status for path in ("/livez", "/readyz", "/health")] == [200] * 3
    assert ask(rules, path="/metrics").status == 401


def test_the_owners_socket_needs_no_name_and_no_key() -> None:
    headers = {"host": "anything", "origin": "http://evil.example"}
    assert ask(Rules(keys=(KEY,)), method="POST", headers=headers, owner=True).status == 200


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    answer = ask(Rules(max_body=10), method="POST", headers={"content-length": "11"})
    assert (answer.status, answer.reached) == (413, False)
    assert ask(method="POST", headers={"content-length": "-1"}).status == 413


def test_a_body_that_turns_out_too_large_is_broken_off() -> None:
    pieces = [b"x" * 6] * 3
    assert ask(Rules(max_body=10), method="POST", body=iter(pieces)).status == 413


def test_a_body_that_comes_too_slowly_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    async def main() -> None:
        async def receive() -> Any:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while True:
                await receive()

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "scheme": "http",
            "headers": [(b"host", b"localhost")],
            "state": {},
        }
        rules = Rules(body_seconds=0.1)
        await asyncio.wait_for(
            Guard(app, rules, Metrics(), Log(quiet=True))(scope, receive, send), 5
        )

    asyncio.run(main())
    assert sent[0]["status"] == 408


def test_a_request_id_comes_back_and_a_strange_one_does_not() -> None:
    assert ask(headers={"x-request-id": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    strange = ask(headers={"x-request-id": "a b\tc" * 40}).headers["x-request-id"]
    assert len(strange) == 16


def test_every_answer_forbids_sniffing_and_frames() -> None:
    for answer in (ask(), ask(headers={"host": "evil.example"})):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"


def test_a_path_that_a_client_made_up_is_not_a_metric_and_not_in_the_log() -> None:
    """Each would be a series of its own, and a prompt in a query a prompt in a log."""
    stream = io.StringIO()
    ask(path="/secret-prompt", log=Log(as_json=True, stream=stream))
    assert "answered" in stream.getvalue()
    assert "secret" not in stream.getvalue()
