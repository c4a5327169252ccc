"""What systemd hands over and wants to hear: sockets it listens on for us, and READY=1."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

_FIRST = 3


def handed_over() -> list[socket.socket]:
    """The sockets with which systemd started this process; none otherwise. To be asked once."""
    mine = os.environ.pop("LISTEN_PID", None) == str(os.getpid())
    count = os.environ.pop("LISTEN_FDS", "0")
    os.environ.pop("LISTEN_FDNAMES", None)
    if not mine or not count.isdigit():
        return []
    sockets = [socket.socket(fileno=number) for number in range(_FIRST, _FIRST + int(count))]
    for each in sockets:
        each.set_inheritable(False)
    return sockets


def notify(state: str) -> None:
    """Tell whoever started this process, if they want to hear: "READY=1", "STOPPING=1"."""
    place = os.environ.get("NOTIFY_SOCKET")
    if not place:
        return
    address = "\0" + place[1:] if place.startswith("@") else place
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(state.encode(), address)
