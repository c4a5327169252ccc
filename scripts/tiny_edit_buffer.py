"""Encoded pictures before and after edits, kept on the device and renewed a few at a time."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLFlux2
from tiny_data import Prompts, token_offsets
from tiny_edit_data import OwnPictures, Pair, Pictures
from tiny_edits import ADD, BACKGROUND, Edits
from tiny_models import encode_pictures, pack
from torch import Tensor


class EditBuffer:
    """Each instruction with two pictures, in one size.

    Of the pairs that have one, the share `own` holds a picture that the student drew itself; the
    other of the two, and both of all other pairs, are drawn by the script. With `second` (a pool's
    flags) every sample has two references, of which the instruction means one.
    """

    def __init__(
        self,
        vae: AutoencoderKLFlux2,
        prompts: Prompts,
        pairs: int,
        grid: tuple[int, int],
        stars: float,
        *,
        own: OwnPictures | None = None,
        second: Tensor | None = None,
    ) -> None:
        self.vae, self.prompts, self.grid, self.stars = vae, prompts, grid, stars
        self.own, self.second = own, second
        self.pictures_of = Pictures(vae, grid, own)
        device, tokens = prompts.ids.device, grid[0] * grid[1]
        self.rows = prompts.pick(pairs)
        shape = (pairs, 2, tokens, 128)
        self.before = torch.empty(shape, device=device, dtype=torch.bfloat16)
        self.after = torch.empty(shape, device=device, dtype=torch.bfloat16)
        size = (pairs, 2, 3, 16 * grid[0], 16 * grid[1])
        self.pixels = torch.empty(size, device=device, dtype=torch.uint8)
        self.centres = torch.empty(pairs, 2, 2, 2, device=device)
        self.oldest = 0
        share = min(pairs, 64)
        for _ in range(-(-pairs // share)):
            self.renew(share)

    @property
    def references(self) -> int:
        """How many references a sample has."""
        return 1 if self.second is None else 2

    @torch.no_grad()
    def renew(self, pairs: int) -> None:
        """Replace the oldest pictures by new ones."""
        place = torch.arange(self.oldest, self.oldest + pairs, device=self.rows.device)
        place = place % len(self.rows)
        self.oldest = (self.oldest + pairs) % len(self.rows)
        shared = 0 if self.own is None else pairs * 3 // 5
        if shared:
            self._keep(place[:shared], *self._with_own(shared))
        self._keep(place[shared:], *self._by_script(pairs - shared))

    def _with_own(self, pairs: int) -> tuple[Tensor, Pair, Pair]:
        assert self.own is not None
        some = torch.randint(len(self.own.rows), (pairs,), device=self.rows.device)
        rows = self.own.rows[some]
        edits = self._edits(rows)
        return rows, self.pictures_of.by_student(edits, some), self.pictures_of.by_script(edits)

    def _by_script(self, pairs: int) -> tuple[Tensor, Pair, Pair]:
        """Twice as many are tried, and those that fit are kept."""
        rows = self.prompts.pick(2 * pairs, self.stars)
        made = [self.pictures_of.placed(self._edits(rows)) for _ in range(2)]
        fits = (made[0].fits & made[1].fits).float().argsort(descending=True)[:pairs]
        rows = rows[fits]
        edits = self._edits(rows)
        first, last = (self.pictures_of.by_script(edits, layout[fits]) for layout in made)
        return rows, first, last

    def _edits(self, rows: Tensor) -> Edits:
        edits = self.prompts.scenes[rows]
        assert isinstance(edits, Edits)
        return edits

    def _keep(self, place: Tensor, rows: Tensor, first: Pair, last: Pair) -> None:
        self.rows[place] = rows
        edits = self._edits(rows)
        every = torch.arange(len(rows), device=rows.device)
        pictures = torch.cat((first.before, last.before, first.after, last.after))
        latents = pack(encode_pictures(self.vae, pictures)).bfloat16().chunk(4)
        for number, pair in enumerate((first, last)):
            self.before[place, number], self.after[place, number] = latents[number::2]
            self.pixels[place, number] = ((pair.after + 1) * 127.5).round().to(torch.uint8)
            named = pair.layout.centres[every, edits.named]
            self.centres[place, number] = torch.stack((named, pair.layout.new_centres), 1)

    def sample(self, pairs: int) -> dict[str, Tensor]:
        """A batch of 2 P pictures, two of each instruction, one after the other.

        rows (P,), where they were chosen (P,), noise and target (2 P, h * w, 128) float32, and the
        references given (2 P, h * w or 2 h * w, 128) bfloat16.
        """
        place = torch.randint(len(self.rows), (pairs,), device=self.rows.device)
        rows, target = self.rows[place], self.after[place].flatten(0, 1).float()
        given = self.before[place].flatten(0, 1)
        if self.second is not None:
            other = given.roll(2, 0)
            last = self.second[rows].repeat_interleave(2)[:, None, None]
            given = torch.cat((torch.where(last, other, given), torch.where(last, given, other)), 1)
        noise = torch.randn_like(target)
        return {"rows": rows, "chosen": place, "noise": noise, "target": target, "given": given}

    def pictures(self, sample: dict[str, Tensor], pairs: int) -> Tensor:
        """The right pictures (2 P, 3, H, W) in [-1, 1] of a sample's first pairs."""
        return self.pixels[sample["chosen"][:pairs]].flatten(0, 1).float() / 127.5 - 1

    def offsets(self, sample: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """As `LatentBuffer.offsets`, for the named thing and then the one that is added."""
        place = sample["chosen"]
        edits = self._edits(self.rows[place])
        there = torch.stack((edits.kinds != BACKGROUND, edits.kinds == ADD), 1).float()
        there = there.repeat_interleave(2, 1).repeat_interleave(2, 0)
        return token_offsets(self.centres[place].flatten(0, 1), self.grid), there
