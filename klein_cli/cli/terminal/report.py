"""What a run tells its user: results on stdout; notes, warnings and the bar on stderr."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from klein_cli.cli.terminal.preview import Preview
from klein_cli.cli.terminal.progress import Bar, watched
from klein_cli.cli.terminal.text import counted, printable, to_stderr
from klein_cli.errors import KleinError, UsageError
from klein_cli.prompts.rows import Row
from klein_cli.recipe import ALPHA, Recipe
from klein_cli.run.events import Failed, Saved, Stopped, words
from klein_cli.run.jobs import Job

if TYPE_CHECKING:
    from klein_cli.checkpoints.hub.download import Watch
    from klein_cli.text.tokenizer import TokenizedPrompt

_LONGEST = 400


class Report:
    """Speaks for one run. With `as_json`, stdout holds one JSON event a line and nothing else.

    `silent_stdout` is for `-o -`, where stdout holds the image. A `preview`, if it gets one,
    shows each image below its path.
    """

    def __init__(self, *, as_json: bool, quiet: bool, verbose: bool, silent_stdout: bool) -> None:
        self._as_json = as_json
        self._quiet = quiet
        self._verbose = verbose
        self._silent_stdout = silent_stdout
        self._bug_shown = False
        self.bar = Bar(shown=watched() and not quiet)
        self.preview: Preview | None = None

    def note(self, text: str) -> None:
        """Something worth knowing; --quiet leaves it out."""
        if not self._quiet:
            self._to_stderr(text)

    def notice(self, text: str) -> None:
        """A note about what was given, which programs hear of too."""
        self.event("notice", message=text)
        self.note(text)

    def detail(self, text: str) -> None:
        """Something for --verbose."""
        if self._verbose and not self._quiet:
            self._to_stderr(text)

    def warn(self, text: str) -> None:
        """Something that may spoil the images; --quiet does not silence it."""
        self._to_stderr(f"warning: {text}")
        self.event("warning", message=text)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """An error of the block, which propagates, is an event too."""
        try:
            yield
        except KleinError as error:
            with contextlib.suppress(BrokenPipeError):  # which may be the error
                self.event("error", message=error.message, hint=error.hint)
            error.told = self._as_json
            raise

    def event(self, kind: str, **fields: Any) -> None:
        """One line of JSON, under --json only."""
        if self._as_json:
            self._to_stdout(json.dumps({"event": kind, **fields}))

    def doing(self, text: str) -> None:
        """What is being done now, for the bar."""
        self.bar.say(text)

    def expect(self, images: int) -> None:
        """From here on the bar counts images."""
        self.bar.expect(images)

    def progress(self, images: float) -> None:
        """So many images' worth is done beyond those that were counted."""
        self.bar.reach(images)

    @contextlib.contextmanager
    def downloading(self) -> Iterator[Watch]:
        """The bar makes place for a download, and for who watches it."""
        from klein_cli.cli.terminal.download_bar import DownloadBar

        with self.bar.aside(), DownloadBar(self, shown=self.bar.shown) as watch:
            yield watch

    def planned(self, job: Job, tokens: TokenizedPrompt | None) -> None:
        """An image of a dry run, and its prompt in tokens, or None where that is unknown."""
        recipe = job.recipe
        count, cut = (tokens.tokens, tokens.cut) if tokens else (None, None)
        given = _given(recipe)
        references = {"references": [reference._asdict() for reference in given]} if given else {}
        self.event(
            "planned",
            **_facts(job),
            steps=recipe.steps,
            tokens=count,
            cut=cut or None,
            **references,
        )
        length = "length unknown" if count is None else counted(count, "token")
        length += f", cut from {_quoted(cut)}" if cut else ""
        self._result(
            f"{job.path or '-'}  seed {recipe.seed}  {recipe.width}x{recipe.height}"
            f"{' painted' if recipe.mask else ''}  {counted(recipe.steps, 'step')}  {length}  "
            + _in_short(recipe.prompt)
            + "".join(
                f"  {printable(name)} {width}x{height} {counted(tokens, 'token')}"
                for name, width, height, tokens in given
            )
        )

    def saved(self, saved: Saved) -> None:
        """An image is done: its path is the result."""
        self.bar.count()
        facts = _facts(saved.job) | {"path": str(saved.path) if saved.path else None}
        self.event("picture", **facts, seconds=round(saved.seconds, 3))
        if saved.path is not None:
            self._result(str(saved.path))
            if self.preview is not None:
                with self.bar.aside():
                    self.preview.show(saved.path)

    def failed(self, failed: Failed) -> None:
        """An image is lost. A bug shows its traceback, once for a run."""
        self.bar.count(failed=True)
        error = failed.error
        hint = error.hint if isinstance(error, KleinError) else "this is a bug in klein"
        self.event("failed", **_facts(failed.job), error=words(error), hint=hint)
        if not isinstance(error, KleinError) and not self._bug_shown:
            self._bug_shown = True
            self._to_stderr("".join(traceback.format_exception(error)).rstrip())
        self._to_stderr(f"error: image {failed.job.index}: {words(error)}\nhint: {hint}")

    def refused(self, row: Row, error: UsageError) -> None:
        """An image that was given cannot be edited."""
        image = (row.image or ("",))[0]
        facts = {"index": None, "path": None, "prompt": row.prompt, "image": image}
        self.event("failed", **facts, error=error.message, hint=error.hint)
        self._to_stderr(f"error: {printable(image)}: {error.message}\nhint: {error.hint}")

    def refused_line(self, line: int, error: UsageError) -> None:
        """A row of a stream cannot be drawn."""
        self.event("failed", index=None, path=None, line=line, error=error.message, hint=error.hint)
        self._to_stderr(f"error: line {line}: {error.message}\nhint: {error.hint}")

    def stopped(self, stopped: Stopped) -> None:
        """The run ends before its end."""
        error = stopped.error
        self.event("error", message=error.message, hint=error.hint)
        self._to_stderr(f"error: {error.message}\nhint: {error.hint}")

    def _result(self, text: str) -> None:
        if not self._as_json and not self._silent_stdout:
            self._to_stdout(text)

    def _to_stdout(self, text: str) -> None:
        with self.bar.aside():
            print(text, flush=True)  # noqa: T201

    def _to_stderr(self, text: str) -> None:
        with self.bar.aside():
            to_stderr(text)


def _in_short(text: str) -> str:
    """Quoted, and in a line that a terminal can bear; events have all of it."""
    return _quoted(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")


def _quoted(text: str) -> str:
    return printable(json.dumps(text, ensure_ascii=False))


def _facts(job: Job) -> dict[str, Any]:
    recipe = job.recipe
    facts: dict[str, Any] = {
        "index": job.index,
        "path": str(job.path) if job.path else None,
        "seed": recipe.seed,
        "width": recipe.width,
        "height": recipe.height,
        "prompt": recipe.prompt,
    }
    if job.carried:
        facts["carried"] = job.carried
    if recipe.references:
        facts["image"] = [reference.name for reference in recipe.references]
    if recipe.mask is not None:
        facts["mask"] = recipe.mask.name or (ALPHA if recipe.mask.alpha else None)
    return facts


class _Given(NamedTuple):
    """A reference as a plan tells it."""

    name: str
    width: int
    height: int
    tokens: int


def _given(recipe: Recipe) -> list[_Given]:
    return [_Given(each.name, each.width, each.height, each.tokens) for each in recipe.references]
