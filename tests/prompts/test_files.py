"""Prompts files -> rows -> recipes: what is read as it stands, and what is refused where."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice, repeat
from pathlib import Path

import pytest

from klein_cli.errors import UsageError
from klein_cli.presets import presets
from klein_cli.prompts.columns import BadRow
from klein_cli.prompts.files import (
    parse_csv,
    parse_jsonl,
    parse_txt,
    read_prompt,
    read_rows,
    refuse_rows,
)
from klein_cli.prompts.rows import Defaults, Row, own_seeds, prompt_fault, recipe_of
from klein_cli.prompts.utf8 import decode, lines_of
from klein_cli.recipe import Recipe, Shape

DEFAULTS = Defaults(preset=presets()["klein-base-4b"], width=256, height=256, steps=4, guidance=1.0)
NO_STDIN = io.BytesIO()


def lines(text: str) -> Iterator[str]:
    return lines_of(io.BytesIO(text.encode()), "f")


def recipes(row: Row, defaults: Defaults, first_seed: int) -> list[Recipe]:
    """The row's images in a run whose next seed is `first_seed`."""
    return [
        recipe_of(row, defaults, first_seed + k if seed is None else seed)
        for k, seed in enumerate(own_seeds(row, defaults))
    ]


def prompts(rows: object) -> list[str]:
    return [row.prompt for row in rows]  # type: ignore[attr-defined]


def only_fault(rows: object) -> BadRow:
    (fault,) = rows  # type: ignore[misc]
    assert isinstance(fault, BadRow)
    return fault


def test_txt_skips_comments_and_blanks_and_keeps_line_numbers() -> None:
    rows = list(parse_txt(lines("# first\n\na cat\n  \n  # indented\na dog")))
    assert rows == [Row(prompt="a cat", line=3), Row(prompt="a dog", line=6)]


def test_txt_strips_the_line_ending_and_nothing_else() -> None:
    # Upstream does not strip prompts: a blank at either end is a token of its own.
    assert prompts(parse_txt(lines(" a cat \r\n\ta dog\rthe end \n"))) == [
        " a cat ",
        "\ta dog",
        "the end ",
    ]


def test_txt_cuts_only_at_line_endings() -> None:
    # str.splitlines also cuts at these.
    text = "one\u2028two\x0bthree\x85four\x0cfive"
    assert prompts(parse_txt(lines(text + "\n"))) == [text]


def test_jsonl_reads_every_key() -> None:
    line = (
        '{"prompt": " a cat ", "seed": 7, "width": 128, "height": 256, "steps": 2, "guidance": 3,'
        ' "negative_prompt": "dogs", "output": "cat.png", "n": 3}'
    )
    assert list(parse_jsonl(lines("\n" + line))) == [
        Row(
            prompt=" a cat ",
            line=2,
            seed=7,
            width=128,
            height=256,
            steps=2,
            guidance=3,
            negative_prompt="dogs",
            output="cat.png",
            n=3,
        )
    ]


def test_jsonl_null_is_unsaid() -> None:
    assert list(parse_jsonl(lines('{"prompt": "a", "seed": null}'))) == [Row(prompt="a", line=1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "malformed JSON"),
        ('{"prompt": "a"} x', "malformed JSON"),
        ('["a"]', "expected a JSON object"),
        ('"a"', "expected a JSON object"),
        ("[" * 100_000, "malformed JSON"),
        ('{"seed": 1}', "there is no prompt"),
        ('{"prompt": ""}', "the prompt is empty"),
        ('{"prompt": " \\n"}', "the prompt is empty"),
        ('{"prompt": "\\ud800"}', "not valid Unicode"),
        ('{"prompt": 3}', "prompt must be text, not 3"),
        ('{"prompt": "a", "sead": 3}', "unknown key 'sead'"),
        ('{"prompt": "a", "prompt": "b"}', "'prompt' is given twice"),
        ('{"prompt": "a", "seed": "7"}', 'seed must be a whole number, not "7"'),
        ('{"prompt": "a", "seed": 7.0}', "seed must be a whole number, not 7.0"),
        ('{"prompt": "a", "seed": true}', "seed must be a whole number, not true"),
        ('{"prompt": "a", "guidance": "4"}', "guidance must be a number"),
        ('{"prompt": "a", "guidance": false}', "guidance must be a number"),
        ('{"prompt": "a", "guidance": NaN}', "malformed JSON: NaN is not a number"),
        ('{"prompt": "a", "guidance": -Infinity}', "malformed JSON: -Infinity is not a number"),
        ('{"prompt": "a", "output": 1}', "output must be text"),
        ('{"prompt": "a", "n": 0}', "n 0 is out of range"),
        ('{"prompt": "a", "image": 5}', "image must be a path or a list of paths, not 5"),
        ('{"prompt": "a", "image": ["a.png", 5]}', "image must be a path or a list of paths"),
        ('{"prompt": "a", "image": ["a.png", " "]}', "image holds an empty path"),
        ('{"prompt": "a", "mask": ["m.png"]}', "mask must be text"),
        ('{"prompt": "a", "expand": [1, 2]}', "expand must be pixels, not [1, 2]"),
        ('{"prompt": "a", "expand": true}', "expand must be pixels, not true"),
        ('{"prompt": "a", "expand": [0, 0, 0, 0]}', "expand 0,0,0,0 is out of range"),
        ('{"prompt": "a", "expand": "8,8"}', "--expand 8,8 is not valid"),
        ('{"prompt": "a", "n": 1000000000}', "n 1000000000 is out of range"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "malformed JSON"),
    ],
)
def test_jsonl_names_the_fault_and_its_line(line: str, message: str) -> None:
    good, bad = parse_jsonl(lines('{"prompt": "good"}\n' + line))
    assert isinstance(good, Row)
    assert isinstance(bad, BadRow)
    assert bad.line == 2
    assert message in bad.message
    assert bad.hint


def test_jsonl_rows_name_images_one_or_several() -> None:
    text = (
        '{"prompt": "a", "image": "a.png", "mask": "alpha"}\n'
        '{"prompt": "b", "image": ["a;b.png", "c.png"], "expand": 8}\n'
        '{"prompt": "c", "image": [], "expand": [0, 1, 2, 3]}\n'
    )
    assert list(parse_jsonl(lines(text))) == [
        Row(prompt="a", line=1, image=("a.png",), mask="alpha"),
        Row(prompt="b", line=2, image=("a;b.png", "c.png"), expand=(8, 8, 8, 8)),
        Row(prompt="c", line=3, image=(), expand=(0, 1, 2, 3)),
    ]


def test_csv_names_images_in_several_columns_or_between_semicolons() -> None:
    text = 'prompt,image,image,expand\na,a.png,,8\nb,a.png; b.png,c.png,"0,0,8,0"\nc,,,\n'
    assert list(parse_csv(lines(text))) == [
        Row(prompt="a", line=2, image=("a.png",), expand=(8, 8, 8, 8)),
        Row(prompt="b", line=3, image=("a.png", "b.png", "c.png"), expand=(0, 0, 8, 0)),
        Row(prompt="c", line=4),
    ]


def test_csv_reads_names_in_any_order_and_empty_cells_as_unsaid() -> None:
    text = 'seed, prompt ,guidance,output\n7,"a cat, sitting ",4.5,\n, a dog,,dog.png\n'
    assert list(parse_csv(lines(text))) == [
        Row(prompt="a cat, sitting ", line=2, seed=7, guidance=4.5),
        Row(prompt=" a dog", line=3, output="dog.png"),
    ]


def test_csv_counts_lines_through_quoted_line_breaks_and_blank_lines() -> None:
    rows = list(parse_csv(lines('prompt,seed\r\n"two\nlines",1\r\n\r\na dog,x\r\n')))
    assert rows[0] == Row(prompt="two\nlines", line=2, seed=1)
    assert isinstance(rows[1], BadRow)
    assert rows[1].line == 5


def test_csv_rows_of_empty_cells_are_skipped_and_numbers_are_plain_ones() -> None:
    """Spreadsheets leave such rows behind; Python's int() reads 1_0 and other scripts' digits."""
    text = "prompt,seed\r\na cat,1\r\n,\r\n , \r\na dog,1_0\r\na cow,\uff15\r\n"
    cat, *faults = parse_csv(lines(text))
    assert cat == Row(prompt="a cat", seed=1, line=2)
    assert [fault.line for fault in faults if isinstance(fault, BadRow)] == [5, 6]


def test_a_guidance_of_4_and_one_of_4_point_0_are_one_row() -> None:
    whole, decimal = parse_jsonl(
        lines('{"prompt": "a", "guidance": 4}\n{"prompt": "a", "guidance": 4.0}\n')
    )
    assert isinstance(whole, Row)
    assert isinstance(decimal, Row)
    assert type(whole.guidance) is type(decimal.guidance) is float
    digits = "9" * 400
    fault = only_fault(parse_jsonl(lines(f'{{"prompt": "a", "guidance": {digits}}}\n')))
    assert fault.message == "guidance is out of range"


def test_csv_of_a_spreadsheet_with_an_empty_column_and_whole_numbers_as_decimals() -> None:
    assert list(parse_csv(lines("prompt,seed,,\r\na cat,7.0,,\r\na dog,8.5,,\r\n")))[:1] == [
        Row(prompt="a cat", seed=7, line=2)
    ]
    assert (
        "seed must be a whole number"
        in only_fault(parse_csv(lines("prompt,seed,\na dog,8.5,\n"))).message
    )


@pytest.mark.parametrize(("blank", "line"), [("", 1), ("\n \n", 3)])
def test_json_rows_from_a_pipe_are_rows(blank: str, line: int) -> None:
    """A pipe has no ending that could tell: `jq -c ... | klein generate --prompts-file -`."""
    piped = io.BytesIO(f'{blank}{{"prompt": "a cat", "seed": 7}}\n'.encode())
    assert list(read_rows("-", piped)) == [Row(prompt="a cat", seed=7, line=line)]
    wild = io.BytesIO(b'{a|b} cat\n{"prompt": "a cat"}\n')
    assert [row.prompt for row in read_rows("-", wild) if isinstance(row, Row)] == [
        "{a|b} cat",
        '{"prompt": "a cat"}',
    ]
    assert list(read_rows("-", io.BytesIO(b""))) == []


def test_utf16_without_a_mark_is_no_text() -> None:
    with pytest.raises(UsageError, match=r"a zero byte at offset 7 \(line 2\)") as caught:
        list(read_rows("-", io.BytesIO(b"a cat\na\0 \0d\0")))
    assert "UTF-16" in caught.value.hint


def test_csv_short_row_leaves_the_rest_unsaid() -> None:
    assert list(parse_csv(lines("prompt,seed\na cat\n"))) == [Row(prompt="a cat", line=2)]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a cat\na dog\n", 1, "the header has no prompt column: a cat"),
        ("prompt,widht\na cat,1\n", 1, "unknown key 'widht'"),
        ("prompt,cfg_scale\na cat,1\n", 1, "unknown key 'cfg_scale'"),
        ("prompt,seed\na,1\nprompt,seed\nb,2\n", 3, "the header stands here again"),
        ("seed,width\n1,2\n", 1, "no prompt column"),
        ("prompt,seed,seed\na,1,2\n", 1, "'seed' is there twice"),
        ("prompt,seed\na cat, sitting,1\n", 2, "3 cells under 2 columns"),
        ("prompt,seed\n ,1\n", 2, "there is no prompt"),
        ("prompt,seed\na,1.5\n", 2, 'seed must be a whole number, not "1.5"'),
        ("prompt,guidance\na,much\n", 2, "guidance must be a number"),
        ('prompt\n"open', 2, "malformed CSV"),
    ],
)
def test_csv_names_the_fault_and_its_line(text: str, line: int, message: str) -> None:
    fault = only_fault(row for row in parse_csv(lines(text)) if isinstance(row, BadRow))
    assert fault.line == line
    assert message in fault.message


def test_lines_are_read_as_they_are_asked_for() -> None:
    """A file of any length, or one that never ends, takes the memory of a line."""

    class Pipe:
        lines = chain([b"\xef\xbb\xbfa cat\n"], repeat(b"a dog\r\n"))

        def readline(self, _: int) -> bytes:
            return next(self.lines)

    rows = parse_txt(lines_of(Pipe(), "f"))  # type: ignore[arg-type]
    assert prompts(islice(rows, 3)) == ["a cat", "a dog", "a dog"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_file_with_any_line_ending_is_read_in_pieces(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces end within lines, within characters and within \\r\\n."""
    wanted = [f"é{'x' * (n % 7)}" for n in range(50)]
    data = ending.join(wanted).encode()
    for piece in range(1, 12):
        monkeypatch.setattr("klein_cli.prompts.utf8._PIECE", piece)
        found = list(lines_of(io.BytesIO(data), "f"))
        assert [line.rstrip("\r\n") for line in found] == wanted
        assert "".join(found).encode() == data
        wrong = data.replace(b"\xc3\xa9xxx" + ending.encode(), b"\xe9" + ending.encode(), 1)
        with pytest.raises(UsageError, match=rf"offset {wrong.index(0xE9.to_bytes())} \(line 4\)"):
            list(lines_of(io.BytesIO(wrong), "f"))


def test_a_line_that_does_not_end_is_refused_in_little_memory() -> None:
    class Zeros:
        read_so_far = 0

        def readline(self, most: int) -> bytes:
            self.read_so_far += most
            return b"\0" * most

        read = readline

    endless = Zeros()
    with pytest.raises(UsageError, match="line 1 of f is longer than 2 MB"):
        list(lines_of(endless, "f"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="what comes from standard input is longer than 2 MB"):
        read_prompt(endless)  # type: ignore[arg-type]
    assert endless.read_so_far < 5e6
    short = io.BytesIO(b"a cat\n" + b"x" * 2_100_000)
    with pytest.raises(UsageError, match="line 2 of f is longer"):
        list(lines_of(short, "f"))


def test_a_prompt_that_no_model_would_read_is_refused() -> None:
    """It would make an image whose record klein itself would not read."""
    for text in ("x" * 40_000, "\U0001f600" * 40_000):
        recipes(Row(prompt=text, negative_prompt=text), DEFAULTS, 5)
    with pytest.raises(UsageError, match="the prompt has 40,001 characters"):
        recipes(Row(prompt="x" * 40_001), DEFAULTS, 5)
    with pytest.raises(UsageError, match="the negative prompt has 40,001 characters"):
        recipes(Row(prompt="x", negative_prompt="x" * 40_001), DEFAULTS, 5)


def test_failed_rows_can_be_read_back() -> None:
    # failed.jsonl says why, in a key that no other file needs.
    row = '{"prompt": "a cat", "seed": 5, "error": "the worker that drew it died"}'
    assert list(parse_jsonl(lines(row))) == [Row(prompt="a cat", line=1, seed=5)]


def test_decode_takes_a_byte_order_mark_off() -> None:
    assert decode(b"\xef\xbb\xbfa cat", "f") == "a cat"


def test_decode_names_the_byte_that_is_not_utf8() -> None:
    with pytest.raises(UsageError, match=r"f is not UTF-8: byte 0xe9 at offset 8 \(line 2\)"):
        decode(b"\xef\xbb\xbfa\ncaf\xe9s\n", "f")


def test_decode_recognises_utf16() -> None:
    with pytest.raises(UsageError, match="UTF-16"):
        decode("a cat".encode("utf-16"), "f")


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.txt", "a cat\n"), ("p.jsonl", '{"prompt": "a cat"}\n'), ("P.CSV", "prompt\na cat\n")],
)
def test_the_ending_chooses_the_format(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + content.replace("\n", "\r\n").encode())
    assert prompts(read_rows(str(path), NO_STDIN)) == ["a cat"]


def test_a_file_without_an_ending_is_txt(tmp_path: Path) -> None:
    (tmp_path / "63").write_text("a cat\n")
    assert prompts(read_rows(str(tmp_path / "63"), NO_STDIN)) == ["a cat"]


def test_dash_reads_standard_input_as_txt() -> None:
    assert prompts(read_rows("-", io.BytesIO(b"a cat\n# no\na dog\n"))) == ["a cat", "a dog"]


@pytest.mark.parametrize("name", ["p.yaml", "p.xml"])
def test_an_unknown_ending_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        list(read_rows(name, NO_STDIN))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        list(read_rows(str(tmp_path / "none.txt"), NO_STDIN))
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        list(read_rows(str(tmp_path / "folder.txt"), NO_STDIN))


@pytest.mark.parametrize(
    ("piped", "prompt"),
    [(b"a cat\n", "a cat"), (b"a cat\r\n", "a cat"), (b" two\nlines \n\n", " two\nlines \n")],
)
def test_a_piped_prompt_loses_one_line_ending(piped: bytes, prompt: str) -> None:
    assert read_prompt(io.BytesIO(piped)) == prompt


def test_prompt_fault_catches_bytes_that_were_no_text() -> None:
    argument = b"caf\xe9".decode("utf-8", "surrogateescape")
    fault = prompt_fault(argument)
    assert fault is not None
    assert "character 4" in fault[0]
    assert prompt_fault("café") is None


def test_a_silent_row_takes_the_defaults() -> None:
    (recipe,) = recipes(Row(prompt="a cat"), DEFAULTS, 5)
    assert (recipe.prompt, recipe.seed, recipe.model) == ("a cat", 5, "klein-base-4b")
    assert recipe.shape == Shape(256, 256, 4, 1.0)
    assert recipe.negative_prompt is None


def test_a_row_overrides_the_defaults_field_by_field() -> None:
    row = Row(prompt="a cat", width=128, guidance=0.0, negative_prompt="")
    (recipe,) = recipes(row, DEFAULTS, 5)
    assert recipe.shape == Shape(128, 256, 4, 0.0)
    assert recipe.negative_prompt == ""


def test_a_row_with_a_seed_and_n_counts_up_from_it() -> None:
    made = recipes(Row(prompt="a cat", seed=40, n=3), DEFAULTS, 5)
    assert [recipe.seed for recipe in made] == [40, 41, 42]
    assert [recipe.seed for recipe in recipes(Row(prompt="a", seed=0), DEFAULTS, 5)] == [0]


SWEEP = replace(DEFAULTS, seeds=(range(1, 4), range(9, 10)))


def test_a_sweep_draws_every_prompt_with_each_seed() -> None:
    assert [recipe.seed for recipe in recipes(Row(prompt="a cat"), SWEEP, 5)] == [1, 2, 3, 9]


def test_a_row_with_a_seed_keeps_it_in_a_sweep() -> None:
    row = Row(prompt="a cat", seed=40, n=2)
    assert [recipe.seed for recipe in recipes(row, SWEEP, 5)] == [40, 41]
    assert [recipe.seed for recipe in recipes(replace(row, n=None), SWEEP, 5)] == [40]


def test_a_row_and_a_sweep_cannot_both_say_how_many() -> None:
    with pytest.raises(UsageError, match="n and --seeds"):
        recipes(Row(prompt="a cat", n=2), SWEEP, 5)


def test_a_sweep_of_a_million_takes_no_memory() -> None:
    many = replace(DEFAULTS, seeds=(range(1_000_000),))
    assert list(islice(own_seeds(Row(prompt="a cat"), many), 3)) == [0, 1, 2]


def test_wildcards_are_chosen_by_each_pictures_seed() -> None:
    wild = replace(DEFAULTS, wildcards=True)
    made = [recipe.prompt for recipe in recipes(Row(prompt="a {cat|dog}", n=8), wild, 5)]
    assert set(made) == {"a cat", "a dog"}
    assert [recipe.prompt for recipe in recipes(Row(prompt="a {cat|dog}"), wild, 7)] == [made[2]]
    (plain,) = recipes(Row(prompt="a {cat|dog}"), DEFAULTS, 5)
    assert plain.prompt == "a {cat|dog}"


def test_wildcards_that_leave_no_prompt_are_refused() -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        recipes(Row(prompt="{|}", n=1), replace(DEFAULTS, wildcards=True), 5)


def test_recipes_refuse_what_no_picture_can_have() -> None:
    with pytest.raises(UsageError, match="width 100"):
        recipes(Row(prompt="a", width=100), DEFAULTS, 5)
    with pytest.raises(UsageError, match="guidance nan"):
        recipes(Row(prompt="a", guidance=float("nan")), DEFAULTS, 5)


def fault(line: int) -> BadRow:
    return BadRow(line=line, message=f"wrong {line}", hint="fix it")


def test_one_bad_line_is_one_line_of_message() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_rows("p.jsonl", [fault(3)])
    assert (caught.value.message, caught.value.hint) == ("p.jsonl line 3: wrong 3", "fix it")


def test_bad_lines_are_reported_together() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_rows("-", [fault(3), fault(9)])
    first, *rest = caught.value.message.splitlines()
    assert first == "standard input has 2 bad lines"
    assert rest == ["  line 3: wrong 3 (fix it)", "  line 9: wrong 9 (fix it)"]


def test_a_flood_of_bad_lines_is_cut_short_and_counted() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_rows("p.csv", [fault(line) for line in range(1, 1001)])
    lines = caught.value.message.splitlines()
    assert lines[0] == "p.csv has 1000 bad lines"
    assert lines[20:] == ["  line 20: wrong 20 (fix it)", "  and 980 more"]


def test_a_typed_prompt_has_no_line_to_name() -> None:
    with pytest.raises(UsageError) as caught:
        refuse_rows("", [fault(0)])
    assert caught.value.message == "wrong 0"
