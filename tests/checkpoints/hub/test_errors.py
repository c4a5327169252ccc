"""What keeps a model from being fetched, in words and with a next step; bugs pass through."""

from __future__ import annotations

import errno
import os

import pytest
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from klein_cli.checkpoints.hub.errors import explained, is_worth_another_try
from klein_cli.errors import ModelError

PAGE = "https://huggingface.co/nobody/model"


def refused(error: Exception) -> ModelError:
    with pytest.raises(ModelError) as caught, explained("nobody/model"):
        raise error
    assert "\n" not in caught.value.message + caught.value.hint
    assert "--model tiny" in caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("error", "words", "hint"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full", "make room"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES)), "Permission denied", "HF_HOME"),
        (OfflineModeIsEnabled("no"), "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE"),
        (LocalEntryNotFoundError("no"), "the hub cannot be reached", PAGE),
        (HTTPError("name or service not known"), "the hub cannot be reached", PAGE),
    ],
)
def test_each_has_its_words_and_a_next_step(error: Exception, words: str, hint: str) -> None:
    told = refused(error)
    assert words in told.message
    assert hint in told.hint


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), explained("nobody/model"):
        raise ZeroDivisionError


def test_a_broken_connection_is_worth_another_try_and_a_full_disk_is_not() -> None:
    assert is_worth_another_try(HTTPError("reset"))
    assert not is_worth_another_try(OSError(errno.ENOSPC, "full"))
    assert not is_worth_another_try(ModelError("a", "b"))
