"""Connections that say nothing, come by the hundred or come from the owner; and the end."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from fake_engines import Script, running

from klein_cli.serve.server import BoundedProtocol

FOX = {"prompt": "a red fox", "seed": 7, "size": "128x128"}


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side hangs up, after what it has said; TimeoutError if it does not."""
    try:
        while connection.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("said", [b"", b"POST / HTTP/1.1\r\nHost: loc"])
def test_a_connection_that_says_nothing_whole_is_closed(
    said: bytes, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slowloris: a byte a minute, from a thousand connections, would keep everybody out."""
    monkeypatch.setattr(BoundedProtocol, "silence", 0.1)
    with (
        running(short_folder) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow,
    ):
        slow.sendall(said)
        assert is_closed(slow)


def test_a_second_request_may_not_be_slow_either(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "silence", 0.1)
    with (
        running(short_folder) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow,
    ):
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(65_536).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /li")
        assert is_closed(slow)


def test_an_image_that_takes_longer_than_a_silence_may_is_drawn(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "silence", 0.1)
    with running(short_folder, Script(step_seconds=0.1)) as server, server.client() as client:
        assert client.post("/v1/images/generations", json=FOX).status_code == 200


def test_hundreds_of_connections_do_not_keep_the_owner_out(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedProtocol, "most", 50)
    with running(short_folder) as server:
        place = ("127.0.0.1", server.port)
        crowd = [socket.create_connection(place, timeout=5) for _ in range(200)]
        time.sleep(0.1)
        with server.owner() as owner:
            assert owner.get("/livez").status_code == 200
        for each in crowd:
            each.close()


def test_only_the_owner_stops_the_server_and_learns_its_facts(short_folder: Path) -> None:
    with running(short_folder) as server, server.client() as client, server.owner() as owner:
        assert client.post("/klein/v1/stop").status_code == 403
        assert client.get("/klein/v1/hello").json()["facts"] == {}
        assert owner.get("/klein/v1/hello").json()["facts"] == {"klein": "this"}
        assert owner.post("/klein/v1/stop").status_code == 200


def test_ready_fails_first_and_the_image_in_hand_is_answered(short_folder: Path) -> None:
    script = Script(step_seconds=0.1)
    with running(short_folder, script) as server, server.client() as client:
        assert client.get("/readyz").status_code == 200
        asked = {**FOX, "stream": True}
        with client.stream("POST", "/v1/images/generations", json=asked) as answer:
            while not script.drawn:
                time.sleep(0.005)
            with server.owner() as owner:
                owner.post("/klein/v1/stop")
                time.sleep(0.1)
                assert owner.get("/readyz").status_code == 503
                assert owner.get("/livez").status_code == 200
                refused = owner.post("/v1/images/generations", json=FOX)
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            assert "image_generation.completed" in answer.read().decode()


def test_metrics_count_what_was_done(short_folder: Path) -> None:
    with running(short_folder) as server, server.client() as client:
        client.post("/v1/images/generations", json=FOX)
        client.get("/a-path-that-somebody-made-up")
        text = client.get("/metrics").text
    assert 'klein_requests_total{route="/v1/images/generations",code="200"} 1' in text
    assert 'klein_requests_total{route="other",code="404"} 1' in text
    assert 'klein_images_total{model="tiny"} 1' in text
    assert 'klein_image_seconds_bucket{size="128x128",le="+Inf"} 1' in text
    assert "klein_model_loaded 1" in text
