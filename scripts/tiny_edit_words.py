"""How people ask for an edit of a `tiny` picture: plainly, or with small talk around it."""

from __future__ import annotations

import random

from tiny_edits import Edit
from tiny_words import CHATTER, RELATION_WORDS, SIZE_WORDS, chat, in_some_case
from tiny_world import Thing

BEFORE = (
    "please", "please", "please", "could you", "could you please", "can you", "can you please",
    "now", "now", "now please", "next,", "then", "I want you to", "I would like you to", "just",
    "simply", "go ahead and", "let's", "would you", "kindly", "in this picture,", "in this image,",
    "edit the image:", "edit:", "in the image, please", "ok, now", "we need to", "you should",
    "hey,", "hello,", "I'd like to", "try to", "take this picture and", "for the next version,",
)  # fmt: skip
AFTER = (
    ", please", " please", ", thanks", ", thank you", " and keep everything else",
    ", keep everything else the same", " but change nothing else", ", leave the rest as it is",
    ", everything else stays the same", ", and nothing else", " without changing anything else",
    " in this picture", " in the image", " now", " for me", ", keep the rest unchanged",
    ". Do not change anything else", ". Keep the rest as it is", "!", "!", "...",
)  # fmt: skip
MORE_CHATTER = (
    "Everything else should stay exactly where it is.",
    "The rest of the picture is perfect already.",
    "Do not move anything.",
    "This is the picture from yesterday.",
    "I looked at it again and want one small change.",
    "Keep the style of the picture.",
)
BACKDROPS = ("background",) * 12 + ("backdrop",) * 3
COLOUR_WORDS = ("color", "colour")


def instruct(
    edit: Edit, rng: random.Random, *, chatter: int | None = None
) -> tuple[str, tuple[bool, ...]]:
    """(an instruction, which colours of three things and the background its words name).

    The plain grammar most often, else other wordings; `chatter` asks for so many sentences of
    small talk around it (None: few, often none).
    """
    plain = chatter is None and rng.random() < 0.35
    named = _Named(edit, rng, plain=plain)
    wordings = {
        "recolour": _recolour,
        "turn": _turn,
        "background": _background,
        "remove": _remove,
        "add": _add,
    }[edit.kind]
    sentence = wordings(edit, named, rng, plain)
    if not plain:
        sentence = _dress(sentence, rng, chatter)
    elif rng.random() < 0.3:
        sentence += "."
    said = [False] * 4
    said[edit.named] = named.by_colour and edit.kind != "background"
    return sentence, tuple(said)


def plainest(edit: Edit) -> str:
    """The instruction in the plain grammar, always the same."""
    thing, new = edit.things[edit.named], edit.new
    alike = [one for one in edit.things if one.shape == thing.shape]
    name = f"the {thing.colour} {thing.shape}" if len(alike) > 1 else f"the {thing.shape}"
    if edit.kind == "recolour":
        return f"make {name} {new.colour}"
    if edit.kind == "turn":
        shape = new.shape if edit.keeps else f"{new.colour} {new.shape}"
        return f"turn {name} into {_article(shape)} {shape}"
    if edit.kind == "background":
        return f"change the background to {new.colour}"
    if edit.kind == "remove":
        return f"remove {name}"
    added = " ".join(word for word in (new.size, new.colour, new.shape) if word)
    return f"add {_article(added)} {added} {RELATION_WORDS[str(edit.beside)][0]} {name}"


class _Named:
    """What the named thing is called: by its shape, with its colour where that is needed."""

    def __init__(self, edit: Edit, rng: random.Random, *, plain: bool) -> None:
        thing = edit.things[edit.named]
        alone = len(edit.things) == 1
        same_shape = sum(one.shape == thing.shape for one in edit.things) > 1
        same_colour = sum(one.colour == thing.colour for one in edit.things) > 1
        luck = rng.random()
        self.by_colour = same_shape or luck < 0.3
        self.text = f"the {thing.colour} {thing.shape}" if self.by_colour else f"the {thing.shape}"
        self.bare = self.text.removeprefix("the ")
        if plain:
            return
        if alone and luck > 0.93:
            self.by_colour = False
            self.text = rng.choice(("it", "the shape", "the object", "this shape", "the figure"))
        elif not same_colour and 0.3 < luck < 0.34:
            self.by_colour = True
            word = rng.choice(("one", "shape", "object", "thing"))
            self.text = f"the {thing.colour} {word}"
        elif luck > 0.9:
            self.text = rng.choice((self.bare, f"this {self.bare}", f"that {self.bare}"))

    def __str__(self) -> str:
        return self.text


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


def _pick(rng: random.Random, plain: bool, forms: tuple[str, ...], usual: int = 1) -> str:
    """One of the first `usual` forms when plain, else any."""
    return rng.choice(forms[:usual] if plain else forms)


def _recolour(edit: Edit, named: _Named, rng: random.Random, plain: bool) -> str:
    colour, word = edit.new.colour, rng.choice(COLOUR_WORDS)
    its = f"the {word} of {named}"
    forms = (
        f"make {named} {colour}", f"paint {named} {colour}", f"{word} {named} {colour}",
        f"turn {named} {colour}", f"re{word} {named} {colour}", f"re{word} {named} to {colour}",
        f"change {named} to {colour}", f"change {its} to {colour}", f"make {its} {colour}",
        f"set {its} to {colour}", f"{named} should be {colour}", f"change {named} into {colour}",
        f"{named} in {colour}", f"fill {named} with {colour}", f"repaint {named} in {colour}",
        f"give {named} {_article(colour)} {colour} {word}", f"I want {named} to be {colour}",
        f"let {named} be {colour}", f"switch {its} to {colour}", f"{named} must become {colour}",
        f"make {named} {colour} instead of {edit.things[edit.named].colour}"
        if named.by_colour else f"make {named} look {colour}",
        f"paint {named} in {colour}", f"dye {named} {colour}", f"turn {its} to {colour}",
        f"make {named} {colour}", f"make {named} {colour}", f"change {its} to {colour}",
    )  # fmt: skip
    return _pick(rng, plain, forms)


def _turn(edit: Edit, named: _Named, rng: random.Random, plain: bool) -> str:
    shape = edit.new.shape if edit.keeps else f"{edit.new.colour} {edit.new.shape}"
    new = f"{_article(shape)} {shape}"
    forms = (
        f"turn {named} into {new}", f"change {named} into {new}", f"change {named} to {new}",
        f"transform {named} into {new}", f"make {named} {new}", f"replace {named} with {new}",
        f"replace {named} by {new}", f"swap {named} for {new}", f"convert {named} into {new}",
        f"convert {named} to {new}", f"swap {named} with {new}", f"substitute {new} for {named}",
        f"exchange {named} for {new}", f"{named} should be {new}", f"draw {new} instead of {named}",
        f"put {new} in place of {named}", f"make {named} into {new}", f"turn {named} to {new}",
        f"I want {new} instead of {named}", f"let {named} become {new}",
        f"morph {named} into {new}", f"{named} becomes {new}", f"reshape {named} into {new}",
        f"switch {named} to {new}",
        f"change the shape of {named} to {new}", f"where {named} is, draw {new}",
        f"turn {named} into {new}", f"replace {named} with {new}", f"turn {named} into {new}",
    )  # fmt: skip
    return _pick(rng, plain, forms)


def _background(edit: Edit, named: _Named, rng: random.Random, plain: bool) -> str:
    colour, word = edit.new.colour, rng.choice(COLOUR_WORDS)
    ground = f"{rng.choice(('the', 'the', 'the', 'the', 'the', 'this'))} "
    ground += "background" if plain else rng.choice(BACKDROPS)
    bare = ground.split()[1]
    a = f"{_article(colour)} {colour}"
    forms = (
        f"change {ground} to {colour}", f"make {ground} {colour}", f"paint {ground} {colour}",
        f"turn {ground} {colour}", f"{word} {ground} {colour}", f"set {ground} to {colour}",
        f"re{word} {ground} {colour}", f"re{word} {ground} to {colour}", f"{ground} in {colour}",
        f"change the {word} of {ground} to {colour}", f"change the {bare} {word} to {colour}",
        f"make the {bare} {word} {colour}", f"set the {bare} {word} to {colour}",
        f"{ground} should be {colour}", f"use {a} {bare}", f"put everything on {a} {bare}",
        f"replace {ground} with {colour}", f"replace {ground} with {a} one", f"{a} {bare} instead",
        f"give it {a} {bare}", f"switch {ground} to {colour}", f"change {ground} into {colour}",
        f"fill {ground} with {colour}", f"I want {a} {bare}", f"let {ground} be {colour}",
        f"turn {ground} into {colour}", f"swap {ground} for {a} one", f"{colour} {bare}",
        f"replace {ground} with {a} {bare}", f"repaint {ground} in {colour}",
        f"give the picture {a} {bare}", f"give the image {a} {bare}",
        f"change {ground} to {colour}", f"make {ground} {colour}", f"change {ground} to {colour}",
    )  # fmt: skip
    return _pick(rng, plain, forms)


def _remove(edit: Edit, named: _Named, rng: random.Random, plain: bool) -> str:
    forms = (
        f"remove {named}", f"delete {named}", f"erase {named}", f"get rid of {named}",
        f"take {named} away", f"take away {named}", f"take out {named}", f"take {named} out",
        f"make {named} disappear", f"drop {named}", f"clear {named}", f"eliminate {named}",
        f"cut {named}", f"wipe out {named}", f"leave out {named}", f"hide {named}",
        f"remove {named} from the picture", f"remove {named} from the image", f"cut out {named}",
        f"delete {named} from the image", f"erase {named} from the picture", f"no {named.bare}",
        f"I do not want {named}", f"{named} should go", f"{named} should not be there",
        f"the picture without {named}", f"paint over {named}", f"rub out {named}",
        f"strip {named}", f"there should be no {named.bare}", f"let {named} vanish",
        f"remove {named} completely", f"remove {named}", f"remove {named}", f"delete {named}",
    )  # fmt: skip
    return _pick(rng, plain, forms)


def _add(edit: Edit, named: _Named, rng: random.Random, plain: bool) -> str:
    words = RELATION_WORDS[str(edit.beside)]
    relation = words[0] if plain else rng.choice(words)
    new = _new(edit.new, rng, plain)
    there = f"{relation} {named}"
    forms = (
        f"add {new} {there}", f"put {new} {there}", f"place {new} {there}", f"insert {new} {there}",
        f"draw {new} {there}", f"paint {new} {there}", f"there should be {new} {there}",
        f"I want {new} {there}", f"create {new} {there}", f"{there}, add {new}",
        f"{there}, draw {new}", f"{there} put {new}", f"include {new} {there}",
        f"show {new} {there}",
        f"add {new} that is {there}", f"add {new} and place it {there}", f"set {new} {there}",
        f"position {new} {there}", f"let there be {new} {there}", f"make {new} appear {there}",
        f"with {new} {there}", f"drop {new} {there}", f"{new} {there}", f"add in {new} {there}",
        f"add {new} just {there}", f"add {new} directly {there}", f"we need {new} {there}",
        f"add {new} {there}", f"put {new} {there}", f"add {new} {there}", f"add {new} {there}",
    )  # fmt: skip
    return _pick(rng, plain, forms)


def _new(thing: Thing, rng: random.Random, plain: bool) -> str:
    words = [thing.colour, thing.shape]
    if thing.size:
        words.insert(0, thing.size if plain else rng.choice(SIZE_WORDS[thing.size]))
    article = _article(words[0])
    if not plain:
        article = rng.choices((article, "a", "", "one", "another"), (76, 6, 8, 5, 5))[0]
    return " ".join([article, *words]).strip()


def _dress(sentence: str, rng: random.Random, chatter: int | None) -> str:
    if rng.random() < 0.4:
        sentence = f"{rng.choice(BEFORE)} {sentence}"
    if rng.random() < 0.3:
        sentence += rng.choice(AFTER)
    elif rng.random() < 0.25:
        sentence += "?" if rng.random() < 0.2 else "."
    sentence = chat(sentence, rng, chatter, (*CHATTER, *MORE_CHATTER))
    return in_some_case(sentence, rng)
