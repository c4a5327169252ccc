"""Prompts files as other people make them: tables, arrays, benchmarks, lines with options."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from klein_cli.errors import UsageError
from klein_cli.prompts.columns import BadRow, Reading
from klein_cli.prompts.csv_rows import parse_csv, parse_tsv
from klein_cli.prompts.files import parse_txt, parse_undeclared, read_rows, refuse_rows
from klein_cli.prompts.json_rows import parse_jsonl
from klein_cli.prompts.remarks import Remarks
from klein_cli.prompts.rows import Row
from klein_cli.prompts.source import prompt_source
from klein_cli.prompts.utf8 import lines_of

PARTI = '''Prompt\tCategory\tChallenge\tNote
a cube\tAbstract\tBasic\tone
"a sign that says ""Hello"""\tArts\tWriting\t
"hello" on a wall\tArts\tWriting\ta quote at the beginning
'''
DRAWBENCH = """Prompts,Category
A red cube.,Colors
"Two cubes. One is red, one is blue.",Counting
"""
GENEVAL = """{"tag": "single_object", "include": [{"class": "cube", "count": 1}], "prompt": "a"}
{"tag": "color_attr", "include": [{"class": "cube", "color": "red"}], "exclude": [], "prompt": "b"}
"""


def lines(text: str) -> Iterator[str]:
    return lines_of(io.BytesIO(text.encode()), "f")


def rows(found: Iterator[Row | BadRow]) -> list[Row]:
    made = list(found)
    assert all(isinstance(row, Row) for row in made), made
    return made  # type: ignore[return-value]


def fault(found: Iterator[Row | BadRow]) -> BadRow:
    (bad,) = (row for row in found if isinstance(row, BadRow))
    return bad


def test_parti_prompts_as_they_are_downloaded() -> None:
    reading = Reading()
    made = rows(parse_tsv(lines(PARTI), reading))
    assert [row.prompt for row in made] == [
        "a cube",
        'a sign that says "Hello"',
        '"hello" on a wall',
    ]
    assert made[0].carried == {"Category": "Abstract", "Challenge": "Basic", "Note": "one"}
    assert list(reading.remarks.notes()) == [
        "the prompts are those of the column Prompt",
        "carried along into the manifest: Category, Challenge, Note",
    ]
    assert rows(parse_csv(lines(PARTI))) == made, "the header tells what separates"


def test_drawbench_as_it_is_downloaded() -> None:
    made = rows(parse_csv(lines(DRAWBENCH)))
    assert [row.prompt for row in made] == ["A red cube.", "Two cubes. One is red, one is blue."]
    assert [row.carried for row in made] == [{"Category": "Colors"}, {"Category": "Counting"}]


def test_geneval_as_it_is_downloaded() -> None:
    first, second = rows(parse_jsonl(lines(GENEVAL)))
    assert (first.prompt, second.prompt) == ("a", "b")
    assert first.carried["include"] == [{"class": "cube", "count": 1}]
    assert second.carried["tag"] == "color_attr"


def test_semicolons_separate_where_the_header_has_no_comma() -> None:
    made = rows(parse_csv(lines('prompt;seed\n"a; b, c";7\nd, e;8\n')))
    assert [(row.prompt, row.seed) for row in made] == [("a; b, c", 7), ("d, e", 8)]


@pytest.mark.parametrize(
    "text",
    [
        '["a cat", {"prompt": "a dog", "seed": 7}]',
        '[\n  "a cat",\n  {\n    "prompt": "a dog",\n    "seed": 7\n  }\n]\n',
        '[{"prompt": "a cat"},\n {"prompt": "a dog", "seed": 7}]',
        '{\n  "prompt": "a cat"\n}\n{\n  "prompt": "a dog",\n  "seed": 7\n}\n',
        '\n{"prompt": "a cat"}\n\n{"prompt": "a dog", "seed": 7}\n',
    ],
)
def test_json_is_an_array_objects_over_lines_or_one_a_line(text: str, tmp_path: Path) -> None:
    made = rows(parse_jsonl(lines(text)))
    assert [(row.prompt, row.seed) for row in made] == [("a cat", None), ("a dog", 7)]
    assert [row.prompt for row in rows(parse_undeclared(lines(text)))] == ["a cat", "a dog"]
    (tmp_path / "p.json").write_text(text)
    assert rows(read_rows(str(tmp_path / "p.json"), io.BytesIO())) == made


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('[\n"a",\n{"prompt": 3}\n]', 3, "prompt must be text, not 3"),
        ('[\n"a",\n{"prompt": "b", "prompt": "c"}]', 3, "'prompt' is given twice"),
        ('[\n"a",\noops]', 3, "malformed JSON"),
        ('[\n"a",\n"b"\n', 3, "the array has no end"),
        ('["a"]\nx', 1, "there is text behind the array"),
        ("[\n1]", 2, "expected a JSON object, found 1"),
    ],
)
def test_a_fault_within_an_array_is_named_with_its_line(text: str, line: int, message: str) -> None:
    bad = fault(parse_jsonl(lines(text)))
    assert bad.line == line
    assert message in bad.message


def test_words_in_brackets_are_a_prompt_and_no_array() -> None:
    assert [row.prompt for row in rows(parse_undeclared(lines("[a fox]\n[b]\n")))] == [
        "[a fox]",
        "[b]",
    ]


def test_the_prompts_column_can_be_named() -> None:
    reading = Reading(prompt_column="caption")
    (row,) = rows(parse_csv(lines("id,prompt,caption\n7,old,a cat\n"), reading))
    assert (row.prompt, row.id, row.carried) == ("a cat", "7", {"prompt": "old"})
    bad = fault(parse_csv(lines("id,text\n7,old\n"), reading))
    assert (bad.message, bad.hint) == ("there is no column 'caption'", "the columns are id, text")


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse_csv, "caption,seed\na,1\nb,2\n"), (parse_jsonl, '{"caption": "a"}\n')],
)
def test_without_a_plain_column_the_hint_says_how_to_name_one(parse: Any, text: str) -> None:
    assert "--prompt-column caption" in fault(parse(lines(text))).hint


@pytest.mark.parametrize(
    ("name", "meant"),
    [("widht", "width"), ("Seed", "seed"), ("cfg_scale", "guidance"), ("outptu", "output")],
)
def test_a_slip_of_the_fingers_is_not_carried_along(name: str, meant: str) -> None:
    """It was meant to do something, and would do nothing."""
    bad = fault(parse_csv(lines(f"prompt,{name}\na cat,1\n")))
    assert bad.message == f"unknown key {name!r}"
    assert f"did you mean {meant}?" in bad.hint


OPTIONS = """--prompt "a red circle" --negative_prompt "blur" --seed 9 --sampler_name "Euler a"
a blue star --steps 8 --cfg_scale=2.5
an orange square -n4 -S77 -W512
the cat's hat --steps 3
plain words, no options - none
"""


def test_option_lines_are_read_where_they_are_asked_for() -> None:
    reading = Reading(options_in_prompts=True)
    made = rows(parse_txt(lines(OPTIONS), reading))
    circle = {"seed": 9, "negative_prompt": "blur"}
    assert made == [
        Row(prompt="a red circle", line=1, **circle),  # type: ignore[arg-type]
        Row(prompt="a blue star", line=2, steps=8, guidance=2.5),
        Row(prompt="an orange square", line=3, n=4, seed=77, width=512),
        Row(prompt="the cat's hat", line=4, steps=3),
        Row(prompt="plain words, no options - none", line=5),
    ]
    assert list(reading.remarks.notes()) == ["left out: --sampler_name of other programs"]


def test_otherwise_option_lines_are_words_and_that_is_said_once() -> None:
    reading = Reading()
    made = rows(parse_txt(lines(OPTIONS), reading))
    assert made[1].prompt == "a blue star --steps 8 --cfg_scale=2.5"
    (warning,) = reading.remarks.warnings()
    assert warning.startswith("line 1 and 3 more lines: options (--prompt, --steps, -s4 ...)")
    assert "--options-in-prompts" in warning


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat --steps", "--steps has no value"),
        ("a cat --steps many", "steps takes a number, not 'many'"),
        ("a cat --prompt dog", "there are words beside --prompt"),
    ],
)
def test_an_option_line_that_makes_no_sense_is_refused(line: str, message: str) -> None:
    bad = fault(parse_txt(lines(line), Reading(options_in_prompts=True)))
    assert message in bad.message


def remarks_on(*prompts: str) -> list[str]:
    remarks = Remarks()
    text = "\n".join(prompts)
    stdin = io.BytesIO(text.encode())
    reading = Reading(remarks=remarks)
    source = prompt_source(typed=None, option=None, file="-", stdin=stdin, reading=reading)
    rows(source.rows)
    return list(remarks.warnings())


def test_weights_of_other_programs_are_words_and_that_is_said() -> None:
    (weights,) = remarks_on("a (red:1.3) cat", "a dog", "(a, b : .5)")
    assert weights.startswith("line 1 and 1 more line: (word:1.3) is taken as words")
    assert len(remarks_on("[cat:dog:0.5]", "x BREAK y", "<lora:name:0.8> cat")) == 3


def test_what_is_no_weight_is_not_remarked_on() -> None:
    assert (
        remarks_on("(a photo, 16:9)", "at (12:30) noon", "[a: b]", "BREAKFAST", 'a sign "BREAK"')
        == []
    )


def test_a_table_named_txt_is_remarked_on() -> None:
    reading = Reading()
    rows(parse_txt(lines(PARTI), reading))
    assert any("name a table .tsv" in text for text in reading.remarks.warnings())


def test_a_fault_of_553_lines_is_said_once_with_its_count() -> None:
    text = "".join(f'{{"caption": "a {number}"}}\n' for number in range(553))
    with pytest.raises(UsageError) as caught:
        refuse_rows("p.jsonl", [row for row in parse_jsonl(lines(text)) if isinstance(row, BadRow)])
    assert caught.value.message == "p.jsonl line 1 and 552 more lines: there is no prompt"
    text += "oops\n"
    with pytest.raises(UsageError) as caught:
        refuse_rows("p.jsonl", [row for row in parse_jsonl(lines(text)) if isinstance(row, BadRow)])
    head, first, second = caught.value.message.splitlines()
    assert head == "p.jsonl has 554 bad lines"
    assert first.startswith("  line 1 and 552 more lines: there is no prompt (")
    assert second.startswith("  line 554: malformed JSON")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "a red circle\n\ufeff# of the second file\na blue star\n",
            ["a red circle", "a blue star"],
        ),
        ("\ufeffa\n\ufeffb\n", ["a", "b"]),
    ],
)
def test_files_put_together_leave_no_mark_in_a_prompt(text: str, found: list[str]) -> None:
    """A comment behind a mark was drawn, mark and all."""
    assert [row.prompt for row in rows(parse_txt(lines(text)))] == found


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_jsonl, '{"prompt": "a red\\u0000circle"}'),
        (parse_jsonl, '{"prompt": "a", "negative_prompt": "b\\u0000"}'),
        (parse_jsonl, '{"prompt": "a\\ufeff# b"}'),
        (parse_txt, "a red circle\ufeff# of the second file"),
        (parse_csv, "prompt\na\ufeffb\n"),
    ],
)
def test_marks_and_zeros_within_words_are_refused(parse: Any, text: str) -> None:
    assert "character" in fault(parse(lines(text))).message
