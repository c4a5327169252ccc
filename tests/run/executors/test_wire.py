"""Messages over a socket: what comes out is what went in, and an end amid one is an end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from socket import socket, socketpair

import numpy
import pytest

from klein_cli.output.metadata import Origin
from klein_cli.recipe import MAX_SEED, Mask, Model, Recipe, Reference
from klein_cli.run.executors import wire
from klein_cli.run.executors.files import SentFile
from klein_cli.run.executors.worker import Drawn, DrawRequest, Failure, LoadRequest, WorkerInfo
from klein_cli.settings import Settings

RECIPE = Recipe(
    prompt='a "cat"\n\x00 ☃ \udc80',
    seed=MAX_SEED,
    width=64,
    height=32,
    steps=4,
    guidance=0.1,
    model="/models/\udcff",
    negative_prompt=None,
)
EDIT = replace(
    RECIPE,
    references=(Reference(sha256="0" * 64, name="a.png", width=64, height=32),),
    mask=Mask(sha256="1" * 64, name="m\udcff.png", expand=(0, 1, 2, 3), box=(0, 0, 64, 32)),
)
ORIGIN = Origin(
    model=Model(name="small", revision="0a", weights="00"),
    settings=Settings(rng="cuda"),
    provenance={"threads": "2"},
)


@pytest.fixture
def ends() -> Iterator[tuple[socket, socket]]:
    ours, theirs = socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    "message",
    [
        LoadRequest(
            model="/a/b c\udcff", settings=Settings(device="cuda", quantize="fp8"), threads=7
        ),
        DrawRequest(recipes=[RECIPE, replace(RECIPE, guidance=4, negative_prompt="")], tiled=True),
        DrawRequest(recipes=[EDIT], tiled=False),
        WorkerInfo(origin=ORIGIN, batch_size=3),
        Failure(name="OutOfMemoryError", message="it did not fit", hint="use less"),
        Failure(name="ZeroDivisionError", message="", traceback="Traceback ..."),
        Drawn(images=[], failure=Failure(name="ModelError", message="a", hint="b"), seconds=0.125),
    ],
)
def test_what_comes_out_is_what_went_in(message: wire.Message, ends: tuple[socket, socket]) -> None:
    ours, theirs = ends
    wire.send(ours, message)
    found = wire.receive(theirs)
    assert found == message
    assert repr(found) == repr(message), "a whole number became another kind of number"


def test_given_images_go_by_path_or_by_their_bytes(ends: tuple[socket, socket]) -> None:
    """A worker on another machine has no such path, and standard input has none anywhere."""
    ours, theirs = ends
    by_path = SentFile(sha256="0" * 64, name="a.png", path="/a.png")
    by_bytes = SentFile(sha256="1" * 64, name="b.png", path=None, data=bytes(range(256)))
    message = DrawRequest(recipes=[EDIT], tiled=False, files=[by_path, by_bytes])
    wire.send(ours, message)
    assert wire.receive(theirs) == message


def test_what_was_found_about_images_comes_back_and_so_do_16_bits(
    ends: tuple[socket, socket],
) -> None:
    ours, theirs = ends
    wide = numpy.array([[[1, 65535, 300, 7]]], numpy.uint16)
    notes = [("a.png", "a.png is transparent in places")]
    wire.send(ours, Drawn(images=[wide], failure=None, seconds=1.0, notes=notes))
    found = wire.receive(theirs)
    assert isinstance(found, Drawn)
    assert found.notes == notes
    assert found.images[0].dtype == numpy.uint16
    assert numpy.array_equal(found.images[0], wide)


def test_pixels_keep_every_bit_and_their_shapes(ends: tuple[socket, socket]) -> None:
    """Larger than any socket's buffer, of several sizes, and one that is a view of another."""
    ours, theirs = ends
    noise = numpy.random.default_rng(7).integers(0, 256, (512, 640, 3), numpy.uint8)
    images = [noise, noise[:64, :32], noise.transpose(1, 0, 2)]
    sent = Drawn(images=images, failure=None, seconds=1.5)
    thread = threading.Thread(target=wire.send, args=(ours, sent))
    thread.start()
    found = wire.receive(theirs)
    thread.join()
    assert isinstance(found, Drawn)
    assert all(map(numpy.array_equal, found.images, images))
    assert [image.shape for image in found.images] == [p.shape for p in images]
    assert (found.failure, found.seconds) == (None, 1.5)


@pytest.mark.parametrize("kept", [0, 3, 4, 20, -1])
def test_a_peer_that_dies_amid_a_message_has_gone(kept: int, ends: tuple[socket, socket]) -> None:
    """kill -9 can fall between any two bytes: half an image must be no image."""
    ours, theirs = ends
    header = json.dumps({"kind": "Drawn", "parts": [12]}).encode()
    whole = len(header).to_bytes(4, "big") + header + bytes(12)
    ours.sendall(whole[:kept])
    ours.close()
    assert wire.receive(theirs) is None
