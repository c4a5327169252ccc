"""The closed world of the `tiny` model: what its pictures hold, how they are drawn and described.

A composition names one or two flat shapes, their colours, an optional size and relation, and the
background. Everything a prompt leaves open (where, how large) is a fixed function of the noise that
the picture is denoised from, so each pair of prompt and noise has exactly one right picture.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

COLOURS = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 40),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (140, 60, 180),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star")
RELATIONS = ("above", "below", "left", "right")

# Half-extents as a fraction of the shorter side, before each shape's own scale.
SMALLEST, LARGEST = 0.095, 0.17
SIZE_RANGES = {None: (SMALLEST, LARGEST), "small": (SMALLEST, 0.115), "large": (0.15, LARGEST)}
MARGIN, GAP = 0.03, 0.045
STAR_INNER = 0.40
# Multiples of the half-extent, chosen so that the four shapes look alike in size: the circle's
# radius, half the square's side, the triangle's and the star's circumradius.
SCALES = torch.tensor([1.0, 0.9, 1.3, 1.3])
# How far each shape reaches from its centre in multiples of that: (left and right, up, down).
REACH = torch.tensor(
    [
        [1.0, 1.0, 1.0],
        [1.0, 1.0, 1.0],
        [math.sqrt(0.75), 1.0, 0.5],
        [math.sin(math.radians(72)), 1.0, math.cos(math.radians(36))],
    ]
)
LAYOUT_CHANNELS = 7


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: a colour and shape by name, and "small", "large" or None."""

    colour: str
    shape: str
    size: str | None = None

    @property
    def kind(self) -> tuple[str, str]:
        """What it is, whatever its size."""
        return self.colour, self.shape


@dataclass(frozen=True, slots=True)
class Composition:
    """One or two things on a background; `relation` says where the first lies from the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def held_out(self) -> bool:
        """True for the tenth part of all compositions that training never sees.

        One thing: its colour, shape and background. Two: both colours and shapes, in any order,
        on any background, in any relation.
        """
        if len(self.things) == 1:
            key = f"{self.things[0].kind} on {self.background}"
        else:
            key = " & ".join(sorted(str(thing.kind) for thing in self.things))
        return hashlib.sha256(key.encode()).digest()[0] < 26


def singles(*, held_out: bool) -> list[Composition]:
    """Every composition of one thing without a size, held out or not."""
    every = (
        Composition((Thing(colour, shape),), background)
        for colour, shape, background in product(COLOURS, SHAPES, COLOURS)
        if colour != background
    )
    return [one for one in every if one.held_out == held_out]


def draw_composition(rng: random.Random, *, pairs: float, held_out: bool = False) -> Composition:
    """A random composition, of two things with probability `pairs`."""
    while True:
        colours = rng.sample(sorted(COLOURS), 3)
        count = 2 if rng.random() < pairs else 1
        things = tuple(
            Thing(colours[i], rng.choice(SHAPES), rng.choice((None, None, "small", "large")))
            for i in range(count)
        )
        relation = rng.choice(RELATIONS) if count == 2 else None
        made = Composition(things, colours[2], relation)
        if made.held_out == held_out:
            return made


# --- words ---------------------------------------------------------------------------------------

RELATION_WORDS = {
    "above": ("above", "above", "above", "over", "on top of", "higher than"),
    "below": ("below", "below", "below", "under", "beneath", "underneath"),
    "left": ("to the left of", "to the left of", "to the left of", "left of", "on the left of"),
    "right": ("to the right of", "to the right of", "to the right of", "right of", "on the right of"),
}
SIZE_WORDS = {"small": ("small", "small", "small", "little"), "large": ("large", "large", "large", "big")}
BEFORE = (
    "a picture of", "an image of", "a drawing of", "please draw", "draw", "draw me", "paint",
    "I would like to see", "show me", "can you make a simple picture of", "could you please draw",
    "a flat illustration of", "a minimalist poster with", "an icon of", "a vector graphic of",
    "here is what I want:", "the picture shows", "there is", "imagine", "a clean composition:",
    "we need a small illustration for our website. It has", "my daughter asked for a picture with",
    "let us make something simple together, just", "a photo of", "render", "create", "generate",
)  # fmt: skip
AFTER = (
    ", please", ", flat and simple", ", nothing else", ", thank you", ", minimalist", ", vector art",
    ", clean edges", ", high quality", ", highly detailed", ", 4k", ", in the style of a children's book",
    ", for a birthday card", ", centered or not, as you like", ", with sharp edges and plain colors",
    ", no text and no shadows", ", as simple as it can be", " please and thank you", "!", ".", "...",
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
    count = rng.choices((0, 1, 2, 3), (70, 16, 9, 5))[0] if chatter is None else chatter
    if count:
        talk = rng.choices(CHATTER, k=count)
        split = rng.randint(0, count)
        end = "" if sentence[-1] in ".!" else "."
        sentence = " ".join([*talk[:split], sentence + end, *talk[split:]])
    style = rng.random()
    if style < 0.15:
        sentence = sentence[0].upper() + sentence[1:]
    elif style < 0.18:
        sentence = sentence.lower()
    elif style < 0.20:
        sentence = sentence.upper()
    elif style < 0.23:
        sentence = sentence.title()
    return sentence


# --- pictures ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Scenes:
    """A batch of compositions as tensors, on one device.

    shapes (B, 2) int64 with -1 for no second thing; sizes (B, 2, 2) float32, the range of each
    half-extent; colours (B, 3, 3) float32 in [-1, 1], the two things' and the background's;
    relations (B,) int64, an index into RELATIONS or -1.
    """

    shapes: Tensor
    sizes: Tensor
    colours: Tensor
    relations: Tensor

    def __getitem__(self, rows: Tensor) -> Scenes:
        return Scenes(self.shapes[rows], self.sizes[rows], self.colours[rows], self.relations[rows])

    def to(self, device: torch.device | str) -> Scenes:
        """The same batch on another device."""
        return Scenes(*(getattr(self, name).to(device) for name in self.__slots__))


def as_scenes(compositions: list[Composition]) -> Scenes:
    """Compositions as tensors on the CPU."""
    names = list(COLOURS)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 127.5 - 1
    shapes, sizes, colours, relations = [], [], [], []
    for one in compositions:
        things = [*one.things, *one.things][:2]
        shapes.append([SHAPES.index(things[0].shape), SHAPES.index(things[1].shape)])
        if one.relation is None:
            shapes[-1][1] = -1
        sizes.append([SIZE_RANGES[thing.size] for thing in things])
        colours.append([names.index(name) for name in (things[0].colour, things[1].colour, one.background)])
        relations.append(-1 if one.relation is None else RELATIONS.index(one.relation))
    return Scenes(
        torch.tensor(shapes), torch.tensor(sizes), palette[torch.tensor(colours)], torch.tensor(relations)
    )


def layout_uniforms(noise: Tensor) -> Tensor:
    """(B, LAYOUT_CHANNELS) float32, independent and exactly uniform on (0, 1).

    noise (B, C, h, w) is standard normal; so is a channel's mean times the root of h * w, and the
    normal distribution function makes it uniform.
    """
    mean = noise[:, :LAYOUT_CHANNELS].float().mean((2, 3))
    return torch.special.ndtr(mean * math.sqrt(noise.shape[2] * noise.shape[3]))


def lay_out(scenes: Scenes, u: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Centres (B, 2, 2) as (x, y) and scaled half-extents (B, 2), in pixels.

    Things keep a margin to the edges and a gap between their boxes; the first lies from the second
    as the relation says, and further along that axis than across it.
    """
    side = min(height, width)
    shape = scenes.shapes.clamp(min=0)
    low, high = scenes.sizes.unbind(-1)
    extent = fit_extent(low + (high - low) * u[:, :2], height, width)
    radius = extent * SCALES.to(u.device)[shape] * side
    across, up, down = (REACH.to(u.device)[shape] * radius[..., None]).unbind(-1)
    margin, gap = MARGIN * side, GAP * side

    first_x = _between(margin + across[:, 0], width - margin - across[:, 0], u[:, 2])
    first_y = _between(margin + up[:, 0], height - margin - down[:, 0], u[:, 3])
    alone = torch.stack((first_x, first_y), -1)

    vertical = (scenes.relations == 0) | (scenes.relations == 1)
    flipped = (scenes.relations == 1) | (scenes.relations == 3)
    # `lead` is the thing nearer to the origin of the axis of the relation.
    lead, tail = flipped.long(), 1 - flipped.long()

    def pick(values: Tensor, which: Tensor) -> Tensor:
        return values.gather(1, which[:, None])[:, 0]

    before = torch.where(vertical, pick(up, lead), pick(across, lead))
    middle = torch.where(vertical, pick(down, lead) + pick(up, tail), pick(across, lead) + pick(across, tail))
    after = torch.where(vertical, pick(down, tail), pick(across, tail))
    length = torch.where(vertical, height, width).float()
    slack = (length - 2 * margin - gap - before - middle - after).clamp(min=0)
    spread = slack * (0.6 * u[:, 4])
    lead_at = margin + before + (slack - spread) * u[:, 2]
    tail_at = lead_at + middle + gap + spread

    lead_low = torch.where(vertical, pick(across, lead), pick(up, lead)) + margin
    lead_high = torch.where(vertical, width - pick(across, lead), height - pick(down, lead)) - margin
    tail_low = torch.where(vertical, pick(across, tail), pick(up, tail)) + margin
    tail_high = torch.where(vertical, width - pick(across, tail), height - pick(down, tail)) - margin
    lead_across = _between(lead_low, lead_high, u[:, 3])
    reach = 0.5 * (tail_at - lead_at)
    nearest = lead_across.clamp(tail_low, tail_high)
    tail_across = _between(
        torch.maximum(nearest - reach, tail_low), torch.minimum(nearest + reach, tail_high), u[:, 5]
    )

    along = torch.stack((lead_at, tail_at), 1)
    aside = torch.stack((lead_across, tail_across), 1)
    points = torch.where(
        vertical[:, None, None], torch.stack((aside, along), -1), torch.stack((along, aside), -1)
    )
    order = torch.stack((lead, tail), 1).argsort(1)
    points = points.gather(1, order[..., None].expand(-1, -1, 2))
    single = (scenes.relations < 0)[:, None, None]
    return torch.where(single, alone[:, None].expand_as(points), points), radius


def render(scenes: Scenes, centres: Tensor, radii: Tensor, height: int, width: int) -> Tensor:
    """(B, 3, height, width) float32 in [-1, 1], edges smoothed over one pixel."""
    device = centres.device
    y = torch.arange(height, device=device, dtype=torch.float32)[None, :, None] + 0.5
    x = torch.arange(width, device=device, dtype=torch.float32)[None, None, :] + 0.5
    picture = scenes.colours[:, 2, :, None, None].expand(-1, -1, height, width)
    for i in range(2):
        dx = x - centres[:, i, 0, None, None]
        dy = y - centres[:, i, 1, None, None]
        distance = _signed_distance(scenes.shapes[:, i], dx, dy, radii[:, i, None, None])
        cover = (0.5 - distance).clamp(0, 1) * (scenes.shapes[:, i] >= 0)[:, None, None]
        picture = picture + cover[:, None] * (scenes.colours[:, i, :, None, None] - picture)
    return picture


def draw(scenes: Scenes, noise: Tensor) -> Tensor:
    """The one right picture (B, 3, 16 h, 16 w) for each composition and its noise (B, C, h, w)."""
    height, width = 16 * noise.shape[2], 16 * noise.shape[3]
    centres, radii = lay_out(scenes, layout_uniforms(noise), height, width)
    return render(scenes, centres, radii, height, width)


def fit_extent(extent: Tensor, height: int, width: int) -> Tensor:
    """Half-extents moved up, in order, where the smallest would cover too little of a long picture."""
    smallest = max(SMALLEST, 0.784 * SMALLEST * math.sqrt(height * width) / min(height, width))
    return smallest + (extent - SMALLEST) * (LARGEST - smallest) / (LARGEST - SMALLEST)


def _between(low: Tensor, high: Tensor, u: Tensor) -> Tensor:
    return low + (high - low).clamp(min=0) * u


def _signed_distance(shape: Tensor, dx: Tensor, dy: Tensor, r: Tensor) -> Tensor:
    """Distance in pixels to each shape's nearest edge, negative inside; dy points down."""
    circle = (dx.square() + dy.square()).sqrt() - r
    square = torch.maximum(dx.abs(), dy.abs()) - r
    half = math.sqrt(0.75)
    triangle = torch.maximum(dy - 0.5 * r, half * dx.abs() - 0.5 * dy - 0.5 * r)
    # A fifth of the star, folded on its axis: one straight edge from the tip to the inner corner.
    fifth = math.tau / 5
    angle = torch.atan2(dx, -dy)
    folded = ((angle + fifth / 2).remainder(fifth) - fifth / 2).abs()
    radius = (dx.square() + dy.square()).sqrt()
    px, py = radius * folded.cos(), radius * folded.sin()
    corner_x, corner_y = STAR_INNER * math.cos(fifth / 2), STAR_INNER * math.sin(fifth / 2)
    length = math.hypot(1 - corner_x, corner_y)
    star = ((px - r) * corner_y + py * (1 - corner_x)) / length
    kind = shape[:, None, None]
    return torch.where(
        kind == 0, circle, torch.where(kind == 1, square, torch.where(kind == 2, triangle, star))
    )
