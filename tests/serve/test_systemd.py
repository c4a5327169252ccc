"""What systemd hands over, and hears."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from klein_cli.serve import systemd


def test_sockets_are_taken_once_and_only_if_they_are_meant_for_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    assert systemd.handed_over() == []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(systemd, "_FIRST", listener.fileno())
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        (found,) = systemd.handed_over()
        assert found.getsockname() == listener.getsockname()
        assert not os.get_inheritable(found.fileno())
        found.detach()
    assert systemd.handed_over() == []
    assert "LISTEN_FDS" not in os.environ, "a child would take them for its own"


def test_readiness_is_a_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("n")
        monkeypatch.setenv("NOTIFY_SOCKET", "n")
        systemd.notify("READY=1")
        assert heard.recv(100) == b"READY=1"
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")
