"""What can go wrong for a user, as exceptions; nothing below `cli` prints or exits.

    KleinError            message, hint, exit_code
     ├── UsageError       2   the command, a prompts file or an output path is wrong
     ├── ModelError       3   a model, its files or its weights
     │    └── ModelTooLargeError 4
     ├── OutOfMemoryError 4   host or device memory, for an image
     └── CancelledError 130   whoever asked for an image no longer waits for it

Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations


class KleinError(Exception):
    """An error a user can act on: `message` says what is wrong, `hint` what to do about it."""

    exit_code = 1
    told = False
    """Whether an event has told of it: `--json` ends with one, whoever finds the error."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[KleinError], tuple[str, str]]:
        """So that an error can come from another process."""
        return type(self), (self.message, self.hint)


class UsageError(KleinError):
    """The command line, a prompts file or an output path cannot be used as given."""

    exit_code = 2


class ModelError(KleinError):
    """A model cannot be found, read or trusted."""

    exit_code = 3


class ModelTooLargeError(ModelError):
    """The model itself does not fit in the memory of this machine: no smaller image would."""

    exit_code = 4


class OutOfMemoryError(KleinError):
    """The image does not fit in the memory of this machine."""

    exit_code = 4


class CancelledError(KleinError):
    """An image was broken off because nobody waits for it."""

    exit_code = 130


def first_line(error: BaseException) -> str:
    """The first line of an error's message, 200 characters at most; its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
