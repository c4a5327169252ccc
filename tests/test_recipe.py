"""A recipe of words alone is what it ever was; what is given is known by its content."""

import json
from dataclasses import replace

import pytest

from klein_cli.errors import UsageError
from klein_cli.recipe import (
    Adapter,
    Mask,
    Model,
    PartFile,
    Recipe,
    Reference,
    identity,
    recorded,
    recorded_model,
    recorded_shape,
)
from klein_cli.run.resume.history import recipe_hash
from klein_cli.tables import checked

SHA = "0123456789abcdef" * 4
WORDS = Recipe(
    prompt="a fox", seed=7, width=256, height=128, steps=4, guidance=1.0, model="klein-4b"
)
PHOTO = Reference(sha256=SHA, name="photo.jpg", width=256, height=128)
STYLE = Adapter(sha256=SHA, name="style.safetensors", weight=0.8)
MASK = Mask(sha256=SHA, name="mask.png", box=(0, 0, 250, 130))
EDIT = replace(WORDS, references=(PHOTO,), mask=MASK, adapters=(STYLE,))


def test_a_recipe_of_words_says_nothing_of_what_it_does_not_have() -> None:
    """Its record and hash are those of a klein that knew words alone."""
    assert list(recorded(WORDS)) == [
        "prompt",
        "seed",
        "width",
        "height",
        "steps",
        "guidance",
        "model",
        "negative_prompt",
    ]
    assert identity(WORDS) == recorded(WORDS)
    assert recorded_shape(WORDS.shape) == {"width": 256, "height": 128, "steps": 4, "guidance": 1.0}


def test_what_is_recorded_is_read_again() -> None:
    table = json.loads(json.dumps(recorded(EDIT)))
    assert Recipe(**checked(Recipe, table)) == EDIT
    assert Recipe(**checked(Recipe, table)).references[0].name == "photo.jpg"


def test_a_renamed_file_is_the_same_and_another_content_is_not() -> None:
    renamed = replace(
        EDIT,
        references=(replace(PHOTO, name="b.jpg"),),
        mask=replace(MASK, name="m.png"),
        adapters=(replace(STYLE, name="s.safetensors"),),
    )
    assert renamed == EDIT
    assert recipe_hash(renamed) == recipe_hash(EDIT)
    other = replace(EDIT, references=(replace(PHOTO, sha256="f" * 64),))
    assert recipe_hash(other) != recipe_hash(EDIT)


@pytest.mark.parametrize(
    "changed",
    [
        {"references": (PHOTO, PHOTO)},
        {"references": (PHOTO,), "mask": replace(MASK, keep=False)},
        {"references": (PHOTO,), "mask": replace(MASK, blur=3)},
        {"adapters": (replace(STYLE, weight=0.5),)},
        {"adapters": (STYLE, STYLE)},
    ],
)
def test_all_that_an_image_depends_on_is_in_its_hash(changed: dict[str, object]) -> None:
    hashes = {recipe_hash(one) for one in (WORDS, EDIT, replace(WORDS, **changed))}  # type: ignore[arg-type]
    assert len(hashes) == 3


def test_images_of_other_references_masks_or_adapters_are_no_batch() -> None:
    shapes = {
        WORDS.shape,
        EDIT.shape,
        replace(EDIT, mask=None).shape,
        replace(EDIT, adapters=()).shape,
        replace(EDIT, references=(replace(PHOTO, width=240),)).shape,
    }
    assert len(shapes) == 5
    assert replace(EDIT, references=(replace(PHOTO, sha256="f" * 64),)).shape == EDIT.shape


def test_a_model_of_no_other_files_is_recorded_as_ever() -> None:
    assert list(recorded_model(Model(name="x"))) == ["name", "repo", "revision", "weights"]
    part = PartFile(part="vae", name="small.safetensors", weights="ab" * 16, kind="bf16")
    assert recorded_model(Model(name="x", parts=(part,)))["parts"][0]["name"] == part.name


@pytest.mark.parametrize(
    "make",
    [
        lambda: replace(WORDS, mask=MASK),
        lambda: replace(WORDS, references=(PHOTO,) * 11),
        lambda: replace(WORDS, adapters=(STYLE,) * 101),
        lambda: replace(PHOTO, sha256="../etc/passwd"),
        lambda: replace(PHOTO, name="../secret.png"),
        lambda: replace(PHOTO, name="c:\\secret.png"),
        lambda: replace(PHOTO, width=100),
        lambda: replace(STYLE, weight=float("nan")),
        lambda: replace(MASK, box=(5, 5, 5, 9)),
        lambda: replace(MASK, box=(0, 0, 5)),
        lambda: replace(MASK, blur=-1),
        lambda: replace(MASK, expand=(0, 0, 0, 0)),
        lambda: replace(MASK, expand=(-1, 0, 0, 0)),
        lambda: Mask(box=(0, 0, 5, 5)),
    ],
)
def test_what_makes_no_sense_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError):
        make()
