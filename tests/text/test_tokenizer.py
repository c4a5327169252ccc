"""Tokens against transformers on the same files, the template's assertion, and what is cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from klein_cli.errors import ModelError, UsageError
from klein_cli.text.tokenizer import PAD_TOKEN, POSITIONS, PromptTokenizer, render

HEAD, SUFFIX = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def tokenizer(small_snapshot: Path) -> PromptTokenizer:
    return PromptTokenizer.from_snapshot(small_snapshot)


@pytest.fixture(scope="module")
def upstream(small_snapshot: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(small_snapshot / "tokenizer")


@pytest.fixture
def damaged(small_snapshot: Path, tmp_path: Path) -> Path:
    """A snapshot with its tokenizer alone, free to be changed."""
    shutil.copytree(small_snapshot / "tokenizer", tmp_path / "tokenizer")
    return tmp_path


def test_the_template_is_qwen3s() -> None:
    assert render("a cat") == f"{HEAD}a cat{SUFFIX}"


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=80))
@example("")
@example("\na newline first merges with the template's")
@example("  spaces that nobody strips \r\n")
@example("<|endoftext|> typed, <|im_end|> too, and <think>")
@example("e\u0301 \u00e9 \u4f60\u597d \U0001f642 \ufdfa")
@example("word " * 600)
def test_tokens_and_lengths_are_upstreams(
    tokenizer: PromptTokenizer, upstream: Any, prompt: str
) -> None:
    text = upstream.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    wanted = upstream(text, padding="max_length", truncation=True, max_length=512)
    found = tokenizer.tokenize(prompt)
    assert list(found.ids) == wanted["input_ids"]
    assert found.length == sum(wanted["attention_mask"])


def test_a_typed_pad_token_counts(tokenizer: PromptTokenizer) -> None:
    """A length derived from `ids != pad` would leave it out."""
    plain, typed = tokenizer.tokenize("a"), tokenizer.tokenize(f"a{PAD_TOKEN}")
    assert typed.length == plain.length + 1
    assert typed.ids[typed.length :] == plain.ids[-1:] * (POSITIONS - typed.length)


def prompt_of(tokens: int) -> str:
    """A prompt of so many tokens: digits are single tokens each."""
    return "7" * tokens


def test_a_prompt_that_fits_is_not_warned_about(tokenizer: PromptTokenizer) -> None:
    room = tokenizer.tokenize("").room
    found = tokenizer.tokenize(prompt_of(room))
    assert (found.tokens, found.length, found.cut_tokens, found.cut) == (room, POSITIONS, 0, "")
    assert found.warning() is None


def test_the_template_is_cut_before_the_prompt(tokenizer: PromptTokenizer) -> None:
    room = tokenizer.tokenize("").room
    found = tokenizer.tokenize(prompt_of(room + 1))
    assert (found.cut, found.cut_tokens, found.length) == ("", 1, POSITIONS)
    assert found.warning() == (
        f"the prompt is {room + 1} tokens long and {room} fit: all of it is read, but the end of "
        "the template after it is cut off"
    )


def test_what_is_cut_of_the_prompt_is_named(tokenizer: PromptTokenizer) -> None:
    fits = POSITIONS - len(tokenizer._tokenizer.encode(HEAD).ids)
    prompt = prompt_of(fits) + "89 and a tail"
    found = tokenizer.tokenize(prompt)
    assert found.cut == "89 and a tail"
    warning = found.warning()
    assert warning is not None
    assert '"89 and a tail"' in warning
    assert tokenizer.tokenize(prompt_of(fits)).cut == ""


def test_a_long_tail_is_shortened_to_one_line(tokenizer: PromptTokenizer) -> None:
    warning = tokenizer.tokenize("word\n" * 2000).warning()
    assert warning is not None
    assert len(warning) < 200
    assert "\n" not in warning


def test_text_that_is_not_unicode_is_refused(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(UsageError, match="not valid Unicode at character 4"):
        tokenizer.tokenize("half\ud83d")


def test_special_tokens_have_ids_of_their_own(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer.tokenize("x").ids
    names = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    assert all(tokenizer._tokenizer.token_to_id(name) in ids for name in names)
    assert max(ids) < tokenizer.vocabulary


def edit(root: Path, name: str, **changes: Any) -> None:
    path = root / "tokenizer" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ messages[0].content }}", "renders"),
        ("{{ raise_exception('no system prompt') }}", "no system prompt"),
        ("{% if", "fails"),
        ("{{ messages.append(1) }}", "fails"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails"),
        ("{{ '{x}'.format() }}", "fails"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "fails"),
    ],
)
def test_another_template_is_refused(damaged: Path, template: str, words: str) -> None:
    (damaged / "tokenizer" / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=words):
        PromptTokenizer.from_snapshot(damaged)


def test_a_template_that_ignores_enable_thinking_is_refused(damaged: Path) -> None:
    path = damaged / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text().replace("enable_thinking is false", "false"))
    with pytest.raises(ModelError, match="chat template"):
        PromptTokenizer.from_snapshot(damaged)


def test_a_template_that_strips_is_refused(damaged: Path) -> None:
    path = damaged / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text().replace("message.content", "message.content.strip()"))
    with pytest.raises(ModelError, match="chat template"):
        PromptTokenizer.from_snapshot(damaged)


@pytest.mark.parametrize("listed", [False, True])
def test_the_template_may_stand_in_the_config(damaged: Path, listed: bool) -> None:
    path = damaged / "tokenizer" / "chat_template.jinja"
    template: Any = path.read_text()
    path.unlink()
    with pytest.raises(ModelError, match="no chat template"):
        PromptTokenizer.from_snapshot(damaged)
    if listed:
        template = [{"name": "default", "template": template}]
    edit(damaged, "tokenizer_config.json", chat_template=template)
    assert PromptTokenizer.from_snapshot(damaged).tokenize("x").length


def test_a_list_of_templates_that_is_none_is_refused(damaged: Path) -> None:
    (damaged / "tokenizer" / "chat_template.jinja").unlink()
    edit(damaged, "tokenizer_config.json", chat_template=["default", {"name": ["default"]}])
    with pytest.raises(ModelError, match="no chat template"):
        PromptTokenizer.from_snapshot(damaged)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_file_that_is_not_in_utf_8_is_named(damaged: Path, name: str) -> None:
    """Half a download, or an editor of another encoding: once a UnicodeDecodeError."""
    path = damaged / "tokenizer" / name
    path.write_bytes(path.read_bytes() + b"\xff")
    with pytest.raises(ModelError, match=f"{name} cannot be read"):
        PromptTokenizer.from_snapshot(damaged)


def test_another_pad_token_is_refused(damaged: Path) -> None:
    edit(damaged, "tokenizer_config.json", pad_token={"content": "<pad>"})
    with pytest.raises(ModelError, match="pads with <pad>"):
        PromptTokenizer.from_snapshot(damaged)


def test_a_tokenizer_without_the_special_tokens_is_refused(damaged: Path) -> None:
    edit(damaged, "tokenizer.json", added_tokens=[])
    with pytest.raises(ModelError, match="as one token"):
        PromptTokenizer.from_snapshot(damaged)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_broken_or_absent_file_is_named(damaged: Path, name: str) -> None:
    path = damaged / "tokenizer" / name
    path.write_text('{"version": ')
    with pytest.raises(ModelError, match=name):
        PromptTokenizer.from_snapshot(damaged)
    path.unlink()
    with pytest.raises(ModelError, match=f"{name} is missing"):
        PromptTokenizer.from_snapshot(damaged)


def test_truncation_and_padding_in_the_file_do_not_count(damaged: Path) -> None:
    edit(
        damaged,
        "tokenizer.json",
        truncation={"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 600},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
    )
    found = PromptTokenizer.from_snapshot(damaged).tokenize("a red circle on white")
    assert 8 < found.length < 100
    assert len(found.ids) == POSITIONS
