"""How people ask for a composition of the `tiny` world: plainly, or with small talk around it."""

from __future__ import annotations

import random

from tiny_world import Composition, Thing

RELATION_WORDS = {
    "above": ("above", "above", "above", "over", "on top of", "higher than"),
    "below": ("below", "below", "below", "under", "beneath", "underneath"),
    "left": ("to the left of", "to the left of", "to the left of", "left of", "on the left of"),
    "right": (
        "to the right of",
        "to the right of",
        "to the right of",
        "right of",
        "on the right of",
    ),
}
SIZE_WORDS = {
    "small": ("small", "small", "small", "little"),
    "large": ("large", "large", "large", "big"),
}
BEFORE = (
    "a picture of", "an image of", "a drawing of", "please draw", "draw", "draw me", "paint",
    "I would like to see", "show me", "can you make a simple picture of", "could you please draw",
    "a flat illustration of", "a minimalist poster with", "an icon of", "a vector graphic of",
    "here is what I want:", "the picture shows", "there is", "imagine", "a clean composition:",
    "we need a small illustration for our website. It has", "my daughter asked for a picture with",
    "let us make something simple together, just", "a photo of", "render", "create", "generate",
)  # fmt: skip
AFTER = (
    ", please", ", flat and simple", ", nothing else", ", thank you", ", minimalist",
    ", vector art", ", clean edges", ", high quality", ", highly detailed", ", 4k",
    ", in the style of a children's book", ", for a birthday card",
    ", centered or not, as you like", ", with sharp edges and plain colors",
    ", no text and no shadows", ", as simple as it can be", " please and thank you",
    "!", ".", "...",
)  # fmt: skip
CHATTER = (
    "It is for a card that I will send to my grandmother.",
    "Keep it plain, the way a children's book would show it.",
    "I have been looking for a picture like this all day.",
    "Take your time and do not worry about the details.",
    "The edges should be sharp and the surface perfectly flat.",
    "We will print it and put it on the wall of the kitchen.",
    "Nothing else should be in the picture.",
    "My friend said that you can do this in a few seconds.",
    "This is the first page of a book about shapes.",
    "There is no shadow, no texture and no text.",
    "I am writing a longer sentence here only to see whether it matters.",
    "Everything in the scene lies still and is easy to see.",
    "Use a simple style, like paper cut with scissors.",
    "It was a quiet morning and the students were ready to learn.",
    "Make it look good on a screen and on paper.",
    "The teacher asked for something that everybody can recognise.",
    "Please be careful, the last one was not what we had in mind.",
    "What matters most is that it is clear.",
    "If anything is open, choose it as you like.",
    "Thank you very much for your help with this.",
)


def describe(composition: Composition, rng: random.Random, *, chatter: int | None = None) -> str:
    """A prompt for the composition: the plain grammar most often, else a chattier wording.

    `chatter` asks for so many sentences of small talk around it (None: few, often none).
    """
    plain = chatter is None and rng.random() < 0.4
    first = _name(composition.things[0], rng, plain=plain)
    if composition.relation is None:
        subject = first
    else:
        second = _name(composition.things[1], rng, plain=plain)
        subject = _relate(composition.relation, first, second, rng, plain=plain)
    sentence = _place(subject, composition.background, rng, plain=plain)
    if not plain:
        sentence = _dress(sentence, rng, chatter)
    return sentence


def canonical(composition: Composition) -> str:
    """The plainest prompt for the composition, always the same."""

    def name(thing: Thing) -> str:
        words = [thing.size, thing.colour, thing.shape]
        text = " ".join(word for word in words if word)
        return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"

    subject = name(composition.things[0])
    if composition.relation is not None:
        words = RELATION_WORDS[composition.relation][0]
        subject = f"{subject} {words} {name(composition.things[1])}"
    article = "an" if composition.background[0] in "aeiou" else "a"
    return f"{subject} on {article} {composition.background} background"


def _name(thing: Thing, rng: random.Random, *, plain: bool) -> str:
    words = [thing.colour, thing.shape]
    if thing.size:
        words.insert(0, thing.size if plain else rng.choice(SIZE_WORDS[thing.size]))
    right = "an" if words[0][0] in "aeiou" else "a"
    article = rng.choices((right, "a", "", "the", "one"), (70, 8, 14, 6, 0 if plain else 2))[0]
    return " ".join([article, *words]).strip()


def _relate(relation: str, first: str, second: str, rng: random.Random, *, plain: bool) -> str:
    words = RELATION_WORDS[relation][0] if plain else rng.choice(RELATION_WORDS[relation])
    forms = (
        (f"{first} {words} {second}", 70),
        (f"{first} is {words} {second}", 10),
        (f"{second} with {first} {words} it", 6),
        (f"{second} and {first} {words} it", 4),
        (f"{first} and {second}", 6 if relation == "left" else 0),
        (f"{first} placed {words} {second}", 5),
    )
    texts, weights = zip(*forms, strict=True)
    return texts[0] if plain else rng.choices(texts, weights)[0]


def _place(subject: str, background: str, rng: random.Random, *, plain: bool) -> str:
    article = "an" if background[0] in "aeiou" else rng.choice(("a", "a", "a", "a", "the"))
    usual = f"{subject} on {article} {background} background"
    if plain:
        return usual if rng.random() < 0.85 else f"{subject} on {background} background"
    return rng.choices(
        (
            usual,
            f"{subject} on {background} background",
            f"{subject} on {background}",
            f"{subject}, {background} background",
            f"{subject} against {article} {background} background",
            f"{subject} in front of {article} {background} background",
            f"{subject} on {article} plain {background} background",
            f"on {article} {background} background, {subject}",
            f"{subject}. The background is {background}",
            f"{background} background, {subject}",
        ),
        (40, 8, 6, 8, 8, 4, 8, 8, 6, 4),
    )[0]


def _dress(sentence: str, rng: random.Random, chatter: int | None) -> str:
    if rng.random() < 0.45:
        sentence = f"{rng.choice(BEFORE)} {sentence}"
    if rng.random() < 0.35:
        sentence += rng.choice(AFTER)
    if rng.random() < 0.06:
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9)))
        sentence = f"{sentence}, {letters}" if rng.random() < 0.5 else f"{letters} {sentence}"
    return in_some_case(chat(sentence, rng, chatter, CHATTER), rng)


def chat(sentence: str, rng: random.Random, count: int | None, talk: tuple[str, ...]) -> str:
    """The sentence among `count` sentences of small talk (None: few, often none)."""
    if count is None:
        count = rng.choices((0, 1, 2, 3), (70, 16, 9, 5))[0]
    if not count:
        return sentence
    around = rng.choices(talk, k=count)
    split = rng.randint(0, count)
    end = "" if sentence[-1] in ".!?" else "."
    return " ".join([*around[:split], sentence + end, *around[split:]])


def in_some_case(sentence: str, rng: random.Random) -> str:
    """The sentence as it is, most often, or with its first or other letters large or small."""
    style = rng.random()
    if style < 0.15:
        return sentence[0].upper() + sentence[1:]
    if style < 0.18:
        return sentence.lower()
    if style < 0.20:
        return sentence.upper()
    return sentence.title() if style < 0.23 else sentence
