"""The images of a request to edit, as OpenAI's clients send them -> files that can be trusted.

They come as parts of a form, or as data URLs in JSON. Nothing is fetched, no name of a client's is
used, and they are decoded by a process of their own (`klein_cli.serve.decoder`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request

from klein_cli.device.startup import child_environment
from klein_cli.prompts.rows import Inputs
from klein_cli.recipe import MAX_REFERENCES
from klein_cli.run.executors import wire
from klein_cli.run.executors.files import SentFile
from klein_cli.run.executors.worker import DrawRequest, Failure
from klein_cli.serve.errors import ApiError
from klein_cli.serve.openai_body import json_body

_MAX_FILE = 50_000_000
_MAX_MASK = 4_000_000
_MAX_FILES = 17
_MAX_FIELDS = 50
_MAX_FIELD = 64_000
_SECONDS = 60.0
_AT_ONCE = 2
_MASK = "mask"
_DATA_URL = re.compile(r"data:image/[\w.+-]{1,40};base64,", re.ASCII)

OWN = ("image", "image[]", "images", "mask")
"""The fields that are seen to here."""


async def edit_body(request: Request) -> tuple[Mapping[str, Any], list[SentFile]]:
    """The fields of a request, and its files: images in order, and the mask. Raises ApiError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request)
    body = await json_body(request)
    given = body.get("images")
    if not isinstance(given, list) or not given:
        raise ApiError(400, "there are no images to edit", param="images")
    files = [_named(_from_url(each, "images"), f"image {n}") for n, each in enumerate(given, 1)]
    if body.get("mask") is not None:
        files.append(_named(_from_url(body["mask"], "mask"), _MASK))
    return body, _checked(files)


class Decoders:
    """Processes that decode, a few at once."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(_AT_ONCE)

    async def trusted(self, files: list[SentFile]) -> tuple[Inputs, list[SentFile]]:
        """What a recipe says of the files, and files in their place that are safe to decode.

        Raises ApiError for what is no image, is too large, or a mask that does not fit.
        """
        asked = b"".join(wire.encoded(DrawRequest(recipes=[], tiled=False, files=files)))
        async with self._free:
            answer = await _decoded(asked)
        if isinstance(answer, Failure):
            raise ApiError.of(answer.exception())
        assert isinstance(answer, DrawRequest)
        (recipe,) = answer.recipes
        return Inputs(references=recipe.references, mask=recipe.mask), answer.files


async def _decoded(asked: bytes) -> wire.Message:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "klein_cli.serve.decoder"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(),
        start_new_session=True,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(asked), _SECONDS)
        return wire.decoded(out)
    except (TimeoutError, EOFError, ValueError, KeyError):  # it took too much, and was ended
        raise ApiError(400, "an image cannot be read: send PNG, JPEG or WebP files") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _form(request: Request) -> tuple[Mapping[str, Any], list[SentFile]]:
    body: dict[str, Any] = {}
    images: list[bytes] = []
    masks: list[bytes] = []
    async with request.form(
        max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD
    ) as form:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                body[name] = value
            elif name in ("image", "image[]"):
                images.append(await value.read())
            elif name == _MASK:
                masks.append(await value.read())
            else:
                raise ApiError(400, f"there is no file {name[:40]!r} to send", param=name[:40])
    if not images:
        raise ApiError(400, "there is no image to edit", param="image")
    if len(masks) > 1:
        raise ApiError(400, "there are two masks", param="mask")
    files = [_named(data, f"image {number}") for number, data in enumerate(images, 1)]
    return body, _checked([*files, *(_named(data, _MASK) for data in masks)])


def _from_url(given: Any, param: str) -> bytes:
    """The bytes of {"image_url": "data:..."}. Raises ApiError."""
    if not isinstance(given, dict) or set(given) != {"image_url"}:
        takes = '{"image_url": "data:image/png;base64,..."}'
        raise ApiError(400, f"{param} takes {takes}", param=param)
    url = given["image_url"]
    head = _DATA_URL.match(url) if isinstance(url, str) else None
    if head is None:
        raise ApiError(
            400, "nothing is fetched: send the image itself, as a data URL or a file", param=param
        )
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param} is not base64", param=param) from None


def _named(data: bytes, name: str) -> SentFile:
    digest = hashlib.sha256(data).hexdigest()
    return SentFile(sha256=digest, name=name, path=None, data=data)


def _checked(files: list[SentFile]) -> list[SentFile]:
    count = sum(file.name != _MASK for file in files)
    if count > MAX_REFERENCES:
        raise ApiError(400, f"{count} images are given: at most {MAX_REFERENCES}", param="image")
    for file in files:
        most = _MAX_MASK if file.name == _MASK else _MAX_FILE
        if len(file.data) > most:
            raise ApiError(413, f"{file.name} is too large: at most {most // 10**6} MB")
    return files
