"""The `tiny` model's parts as they are trained: sizes, latents, encoder and DiT as one module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import (
    Flux2SingleTransformerBlock,
    Flux2TransformerBlock,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from klein_cli.models.qwen3 import Qwen3Config, Qwen3DecoderLayer, Qwen3Model
from klein_cli.sampling.latents import position_ids
from klein_cli.sampling.schedule import sigmas

POSITIONS = 512
VOCABULARY = 1024
TAPS = (9, 18, 27)
PROBED = 2
"""The single block whose output the probe reads: with the double blocks, half of the depth."""
ROPE_THETA = 1e6

ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 28,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
}
TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 128,
    "out_channels": None,
    "num_layers": 2,
    "num_single_layers": 8,
    "attention_head_dim": 32,
    "num_attention_heads": 6,
    "joint_attention_dim": 192,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": [8, 8, 8, 8],
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": False,
}
# Four channels a norm group: a group of one channel is an instance norm, which wipes the colour
# off a flat picture.
VAE = {
    "block_out_channels": [16, 32, 64, 64],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 32,
    "sample_size": 256,
    "batch_norm_eps": 1e-4,
    "patch_size": [2, 2],
}

WEIGHTS = {
    "text_encoder": "text_encoder/model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


# --- latents -------------------------------------------------------------------------------------


def patchify(z: Tensor) -> Tensor:
    """(B, 32, 2h, 2w) -> (B, 128, h, w), channel order c, row, column with c slowest."""
    b, c, h, w = z.shape
    patches = z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(b, 4 * c, h // 2, w // 2)


def unpatchify(z: Tensor) -> Tensor:
    """The inverse of `patchify`."""
    b, c, h, w = z.shape
    pixels = z.view(b, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return pixels.reshape(b, c // 4, 2 * h, 2 * w)


def pack(z: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C)."""
    return z.flatten(2).transpose(1, 2)


def unpack(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of `pack`."""
    return x.transpose(1, 2).unflatten(2, grid)


def bn_moments(vae: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the 128 patchified channels, (1, 128, 1, 1) float32."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    return mean, (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(1, -1, 1, 1)


def encode_pictures(vae: AutoencoderKLFlux2, pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] -> normalised latents (B, 128, H/16, W/16) float32."""
    moments = vae.quant_conv(vae.encoder(pictures.to(vae.dtype)))
    mean, std = bn_moments(vae)
    return (patchify(moments[:, : VAE["latent_channels"]].float()) - mean) / std


def decode_latents(vae: AutoencoderKLFlux2, latents: Tensor) -> Tensor:
    """The inverse of `encode_pictures`, up to the autoencoder's error."""
    mean, std = bn_moments(vae)
    z = unpatchify(latents * std + mean).to(vae.dtype)
    return vae.decoder(vae.post_quant_conv(z)).float()


# --- encoder and DiT -----------------------------------------------------------------------------


@dataclass
class BatchMask:
    """What a padded batch's lengths come to, as a tensor: (B, 1, positions, keys), True attends.

    The keys stop at the longest prompt that may occur: no query attends beyond it.
    """

    mask: Tensor


class TrainingAttention:
    """The masked causal attention over the first keys, in a form that compiles once."""

    name = "training"

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, attention_lengths: BatchMask
    ) -> Tensor:
        mask = attention_lengths.mask
        groups, keys = query.shape[2] // key.shape[2], mask.shape[-1]
        key = key[:, :keys].repeat_interleave(groups, 2).transpose(1, 2)
        value = value[:, :keys].repeat_interleave(groups, 2).transpose(1, 2)
        out = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask)
        return out.transpose(1, 2)


class Student(nn.Module):
    """The encoder and the DiT as one trainable module.

    `probe` is a scaffold of training, and no part of the written model: it reads off the DiT's
    middle, at every image token, how far away each thing's centre lies. That teaches the first half
    of the blocks to read the layout off the noise, for which the picture alone is a weak teacher.
    """

    def __init__(self) -> None:
        super().__init__()
        config = Qwen3Config(**ENCODER, rope_theta=ROPE_THETA)
        self.encoder = Qwen3Model(config, TAPS, TrainingAttention())
        self.dit = Flux2Transformer2DModel(**TRANSFORMER)
        _initialise(self.encoder, self.dit)
        self.probe = nn.Linear(self.dit.inner_dim, 4)
        nn.init.zeros_(self.probe.weight)
        self.middle: Tensor | None = None
        self.dit.single_transformer_blocks[PROBED].register_forward_hook(self._keep)
        # The residual stream stays in float32 under autocast: positions are read off it finely.
        for entry in (self.dit.x_embedder, self.dit.context_embedder):
            entry.register_forward_hook(lambda module, inputs, out: out.float())

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids (B, S), mask (B, 1, S, keys) -> text embeddings (B, S, 192)."""
        return torch.cat(self.encoder(ids, BatchMask(mask)), -1)

    def velocity(
        self, x: Tensor, sigma: Tensor, text: Tensor, ids: Tensor, references: Tensor | None = None
    ) -> Tensor:
        """x (B, h * w, 128), sigma (B,), ids (S + h * w + R, 4) -> (B, h * w, 128) float32.

        `references` (B, R, 128) are the latents of given pictures; ids covers them as well.
        """
        words, tokens = text.shape[1], x.shape[1]
        if references is not None:
            x = torch.cat((x, references.to(x.dtype)), 1)
        out = self.dit(x, text, sigma, ids[words:], ids[:words], None, return_dict=False)[0]
        self.middle = None if self.middle is None else self.middle[:, words : words + tokens]
        return out[:, :tokens].float()

    def offsets(self, tokens: int) -> Tensor:
        """(B, tokens, 4): the probe's reading of the last `velocity`; see `Layouts.offsets`."""
        assert self.middle is not None
        out: Tensor = self.probe(self.middle[:, :tokens].float())
        return out

    def forget(self) -> None:
        """Drop the gradients, and what the probe reads with all that led to it."""
        self.zero_grad()
        self.middle = None

    def _keep(self, module: nn.Module, inputs: object, out: Tensor) -> None:
        self.middle = out

    def load_snapshot(self, root: Path) -> None:
        """Take up the weights of a written model, which may have fewer single blocks."""
        dit = _floats(root / WEIGHTS["transformer"])
        self.dit.load_state_dict(deepened(dit, len(self.dit.single_transformer_blocks)))
        states = _floats(root / WEIGHTS["text_encoder"])
        own = self.encoder.state_dict()
        self.encoder.load_state_dict({name: states[f"model.{name}"] for name in own})


def load_vae(root: Path) -> AutoencoderKLFlux2:
    """The autoencoder of a written model, in float32 on the CPU."""
    vae = AutoencoderKLFlux2(**VAE)
    vae.load_state_dict(_floats(root / WEIGHTS["vae"]))
    return vae


def deepened(dit: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """A DiT's weights with single blocks put in between until there are `depth`.

    A new block is a copy of the one before it that adds nothing yet, so that the whole computes
    what it did. The first comes after the second block, further ones after every second.
    """
    blocks: list[dict[str, Tensor]] = []
    prefix = "single_transformer_blocks."
    rest = {name: t for name, t in dit.items() if not name.startswith(prefix)}
    for name, tensor in dit.items():
        if name.startswith(prefix):
            number, _, key = name.removeprefix(prefix).partition(".")
            blocks += [{} for _ in range(int(number) + 1 - len(blocks))]
            blocks[int(number)][key] = tensor
    place = 2
    while len(blocks) < depth:
        silent = {"attn.to_out.weight": torch.zeros_like(blocks[0]["attn.to_out.weight"])}
        blocks.insert(place, blocks[place - 1] | silent)
        place += 3
    named = {f"{prefix}{i}.{key}": t for i, block in enumerate(blocks) for key, t in block.items()}
    return rest | named


def places(positions: int, grid: tuple[int, int], references: int) -> Tensor:
    """(positions + (1 + references) * h * w, 4) int64: text, output, and references on its grid."""
    text_and_output = position_ids(positions, grid, torch.device("cpu"))
    output, later = text_and_output[positions:], torch.tensor([10, 0, 0, 0])
    given = [output + number * later for number in range(1, references + 1)]
    return torch.cat((text_and_output, *given))


def noise_levels(grid: tuple[int, int], steps: int) -> Tensor:
    """(steps + 1,) float32: the sigmas for an output of that grid, from 1 down to 0."""
    return torch.from_numpy(sigmas(grid[0] * grid[1], steps))


def compile_blocks() -> None:
    """Compile each kind of block once, for all depths, sizes and batches."""
    torch._dynamo.config.recompile_limit = 64
    # Two sizes that happen to be equal must not be taken for one.
    torch.fx.experimental._config.use_duck_shape = False
    for kind in (Qwen3DecoderLayer, Flux2TransformerBlock, Flux2SingleTransformerBlock):
        kind.forward = torch.compile(kind.forward, dynamic=True)


def _floats(path: Path) -> dict[str, Tensor]:
    states = load_file(path)
    return {name: t.float() if t.is_floating_point() else t for name, t in states.items()}


def _initialise(encoder: Qwen3Model, dit: Flux2Transformer2DModel) -> None:
    depth = 2 * len(encoder.layers)
    for name, p in encoder.named_parameters():
        if p.ndim == 2:
            std = 1.0 if "embed" in name else p.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std *= depth**-0.5
            nn.init.normal_(p, std=std)
    for name, p in dit.named_parameters():
        if p.ndim == 2:
            quiet = "modulation" in name or "norm_out" in name or name.startswith("proj_out")
            nn.init.normal_(p, std=0.02 if quiet else 0.7 * p.shape[1] ** -0.5)
