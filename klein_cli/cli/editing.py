"""What `klein edit` was given: one image, standard input, or a folder -> the rows of a run."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from klein_cli.cli import options
from klein_cli.cli.terminal.report import Report
from klein_cli.errors import UsageError
from klein_cli.output.naming import EXTENSIONS
from klein_cli.paths import user_path
from klein_cli.prompts.columns import Reading
from klein_cli.prompts.files import PROMPTS_FILES, STDIN
from klein_cli.prompts.rows import Defaults, Row
from klein_cli.prompts.source import PromptSource, prompt_source
from klein_cli.run.image_folder import check_apart, image_folder
from klein_cli.run.inputs import MANY, InputImages
from klein_cli.run.plan import Plan

_EXAMPLE = '"make the car red"'
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".heic", ".avif")


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """The IMAGE of `klein edit`, as it was typed, and how its results are written."""

    image: str
    keep_format: bool
    opaque: bool

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, each of whose images is edited."""
        return self.image != STDIN and os.path.isdir(self.image)

    def check(self, prompts: options.PromptOptions, files: options.OutputOptions) -> None:
        """Raise UsageError where words and files have changed places, or do not go together."""
        words, image = prompts.prompt, shlex.quote(self.image)
        # os.path's answers, since Path's raise for words that are too long to be a file's name.
        here = self.image == STDIN or os.path.exists(self.image)
        if here and words is not None and os.path.isfile(words):
            _refuse_file(
                words,
                image=f"a further image: klein edit {image} {_EXAMPLE} -i {shlex.quote(words)}",
                command=f"klein edit {image}",
            )
        if not here and words is not None and os.path.exists(words):
            raise UsageError(
                "the image comes first, and then the words",
                f"klein edit {shlex.quote(words)} {image}",
            )
        if words is None and prompts.prompt_option is None and prompts.prompts_file is None:
            if not here:
                hint = f"name it first: klein edit photo.jpg {_EXAMPLE}"
                raise UsageError(f"there is no image {self.image}", hint)
            hint = f"say what to change: klein edit {image} {_EXAMPLE}"
            raise UsageError("there is no prompt", hint)
        if self.is_folder:
            self._check_folder(prompts, files)
        elif self.keep_format:
            raise UsageError(
                "--keep-format is for a folder of images", "name the file: -o edited.jpg"
            )

    def _check_folder(self, prompts: options.PromptOptions, files: options.OutputOptions) -> None:
        if files.output is None or files.output == STDIN:
            raise UsageError(f"{self.image} is a folder", "name another for its results: -o OUT")
        if Path(files.output).suffix.lower() in EXTENSIONS and not os.path.isdir(files.output):
            raise UsageError(f"-o {files.output} is a file's name", "name a folder: -o OUT")
        if prompts.prompts_file is not None:
            raise UsageError(
                "a folder of images takes one prompt, and no --prompts-file",
                "give rows with an image each to klein generate",
            )
        check_apart(Path(self.image), user_path(files.output))

    def with_first(self, editing: options.EditOptions) -> options.EditOptions:
        """The options with the image in front of those of -i; of a folder, its rows bring it."""
        others = editing.references or []
        return replace(editing, references=[] if self.is_folder else [self.image, *others])

    def rows(
        self,
        prompts: options.PromptOptions,
        others: Sequence[str] | None,
        tell: Callable[[str], None],
    ) -> PromptSource:
        """A row an image of the folder; `tell` hears what of it is left out."""
        (typed,) = source_of(prompts).rows
        assert isinstance(typed, Row)
        folder = image_folder(Path(self.image))
        for note in folder.notes:
            tell(note)
        rows = folder.rows(typed.prompt, others or (), keep_format=self.keep_format)
        return PromptSource(file=self.image, rows=rows)


def source_of(prompts: options.PromptOptions) -> PromptSource:
    """The prompts of a run. Raises UsageError."""
    return prompt_source(
        typed=prompts.prompt,
        option=prompts.prompt_option,
        file=prompts.prompts_file,
        stdin=sys.stdin.buffer,
        reading=Reading(
            prompt_column=prompts.prompt_column, options_in_prompts=prompts.options_in_prompts
        ),
    )


def check_stdin(prompts: options.PromptOptions, editing: options.EditOptions) -> None:
    """Raise UsageError when standard input is to be two things."""
    texts = (prompts.prompt, prompts.prompt_option, prompts.prompts_file)
    images = (*(editing.references or ()), editing.mask)
    if (texts + images).count(STDIN) > 1:
        raise UsageError(
            "standard input is asked for more than once", 'give one "-", and files for the rest'
        )


def check_masks(prompts: options.PromptOptions, editing: options.EditOptions) -> None:
    """Raise UsageError for options of a mask where there can be none."""
    asked = editing.of_masks()
    if asked and prompts.prompts_file is None and not (editing.mask or editing.expand):
        raise UsageError(f"{asked[0]} needs --mask or --expand", "give one of them")


def _refuse_file(words: str, *, image: str, command: str) -> None:
    """Raise UsageError where a prompt is the name of a file of images or of prompts: nobody draws
    that. `image` is what to do with an image, and `command` what takes a prompts file.
    """
    ending = Path(words).suffix.lower()
    if ending in _IMAGES:
        raise UsageError(f"the prompt is a file: {words}", image)
    if ending in PROMPTS_FILES:
        hint = f"if it holds prompts: {command} --prompts-file {shlex.quote(words)}"
        raise UsageError(f"the prompt is a file: {words}", hint)


def _left_unused(defaults: Defaults, images: InputImages) -> tuple[str, ...]:
    """The options that every row says for itself, as they are typed."""
    given = {"image": defaults.image, "mask": defaults.mask, "expand": defaults.expand}
    return tuple(f"--{name}" for name, value in given.items() if value and name not in images.taken)


def report_edits(
    images: InputImages,
    planned: Plan,
    defaults: Defaults,
    of_masks: Sequence[str],
    report: Report,
) -> None:
    """What the user does not know, or may think otherwise, of the images that are given."""
    if images.most > MANY:
        report.warn(f"{images.most} images are given: the model was made for up to {MANY} at once")
    for line in images.described():
        report.detail(line)
    if planned.resized is not None:
        report.notice(planned.resized)
    if planned.encoded_again:
        report.note("--keep-format: a JPEG file encodes again what the mask keeps; PNG does not")
    if of_masks and not images.masked:
        report.warn(no_effect(of_masks, "no image has a mask"))
    if replaced := _left_unused(defaults, images):
        report.warn(no_effect(replaced, "every row has its own"))


def no_effect(asked: Sequence[str], why: str) -> str:
    """What to say of options that change nothing."""
    verb = "has" if len(asked) == 1 else "have"
    return f"{' and '.join(asked)} {verb} no effect: {why}"


def check_words(prompts: options.PromptOptions) -> None:
    """Raise UsageError when the prompt is a file of images or prompts."""
    words = prompts.prompt
    if words is not None and os.path.isfile(words):
        hint = f"to edit it: klein edit {shlex.quote(words)} {_EXAMPLE}"
        _refuse_file(words, image=hint, command="klein generate")
