"""How much arithmetic one image is: counted from the model's configurations, not measured.

Matrix products, convolutions and attention, two operations a multiply-add. What is counted is the
least a run can do: a text encoder that stops at its last tapped layer, no language-model head.
Normalisation, activations and positions are left out; together they are below a thousandth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from klein_cli.checkpoints.resolve import Snapshot
from klein_cli.checkpoints.source import config_of
from klein_cli.models.flux2 import Flux2Config
from klein_cli.models.qwen3 import Qwen3Config
from klein_cli.models.vae import VaeConfig
from klein_cli.recipe import PIXELS_PER_TOKEN
from klein_cli.text.tokenizer import POSITIONS

LATENTS_PER_TOKEN_SIDE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The configurations that the counts follow from."""

    dit: Flux2Config
    encoder: Qwen3Config
    vae: VaeConfig
    encoder_layers: int

    @classmethod
    def of(cls, snapshot: Snapshot) -> Model:
        """Those of a snapshot. Raises ModelError when one is absent or broken."""
        dit, vae, encoder = map(snapshot.part, ("transformer", "vae", "text_encoder"))
        return cls(
            dit=Flux2Config.from_json(config_of(dit, "_class_name", "Flux2Transformer2DModel")),
            vae=VaeConfig.from_json(config_of(vae, "_class_name", "AutoencoderKLFlux2")),
            encoder=Qwen3Config.from_json(config_of(encoder, "architectures", "Qwen3ForCausalLM")),
            encoder_layers=max(snapshot.preset.tapped_layers),
        )

    def tokens(self, width: int, height: int) -> int:
        """The DiT's sequence: the prompt's positions and the image's patches."""
        return POSITIONS + self.image_tokens(width, height)

    def image_tokens(self, width: int, height: int) -> int:
        """The patches of an image."""
        return width // PIXELS_PER_TOKEN * (height // PIXELS_PER_TOKEN)

    @property
    def widest_linear(self) -> tuple[int, int]:
        """(in, out) features of the single blocks' first projection: most of the time is there."""
        width = self.dit.width
        return width, 3 * width + 2 * int(width * self.dit.mlp_ratio)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flops:
    """Floating-point operations of one image, by part."""

    encode: int
    references: int = 0
    dit_linears: int
    dit_attention: int
    decode: int

    @property
    def denoise(self) -> int:
        """All steps of the DiT."""
        return self.dit_linears + self.dit_attention

    @property
    def total(self) -> int:
        """The whole image."""
        return self.encode + self.references + self.denoise + self.decode


def flops(
    model: Model,
    width: int,
    height: int,
    steps: int,
    *,
    guided: bool = False,
    references: Sequence[tuple[int, int]] = (),
    kv_cache: bool = False,
) -> Flops:
    """One image of `width` x `height` pixels. `guided` encodes and predicts everything twice.

    `references` are sizes in pixels; all of their work that is done once is counted, not more.
    """
    times = 2 if guided else 1
    given = sum(model.image_tokens(*size) for size in references)
    image = model.image_tokens(width, height)
    once = sum(vae_encoder(model.vae, *size) for size in references)
    if kv_cache:
        once += reference_pass(model.dit, given)
    linears, attention = dit_step(model.dit, image, given, kv_cache=kv_cache)
    return Flops(
        encode=times * encoder(model.encoder, model.encoder_layers),
        references=once,
        dit_linears=times * steps * linears,
        dit_attention=times * steps * attention,
        decode=vae_decoder(model.vae, width, height),
    )


def dit_step(
    config: Flux2Config, image_tokens: int, reference_tokens: int = 0, *, kv_cache: bool = False
) -> tuple[int, int]:
    """(linears, attention) of one forward of the DiT for one image.

    With a `kv_cache`, references are only looked at.
    """
    width, blocks = config.width, config.num_layers + config.num_single_layers
    moving = 0 if kv_cache else reference_tokens
    tokens = POSITIONS + image_tokens + moving
    seen = POSITIONS + image_tokens + reference_tokens
    linears = blocks * tokens * _block_linears(config)
    linears += (2 * image_tokens + moving) * config.in_channels * width
    linears += POSITIONS * config.joint_attention_dim * width
    # Once a step: two modulations of six parts, one of three, the last norm's two, the timestep's.
    linears += (6 + 6 + 3 + 2) * width * width
    linears += config.timestep_guidance_channels * width + width * width
    return 2 * linears, 2 * blocks * 2 * tokens * seen * width


def reference_pass(config: Flux2Config, tokens: int) -> int:
    """What keeping the keys and values of references takes, once."""
    blocks = config.num_layers + config.num_single_layers
    linears = tokens * (blocks * _block_linears(config) + config.in_channels * config.width)
    return 2 * linears + 2 * blocks * 2 * tokens * tokens * config.width


def _block_linears(config: Flux2Config) -> int:
    """Of one token: queries, keys, values and their way out; two projections into the feed-forward
    and one out.
    """
    width = config.width
    return 4 * width * width + 3 * width * int(width * config.mlp_ratio)


def encoder(config: Qwen3Config, layers: int) -> int:
    """The text encoder over all its positions, attention without regard to the mask."""
    hidden = config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    linears = hidden * (2 * queries + 2 * keys + 3 * config.intermediate_size)
    return 2 * layers * POSITIONS * (linears + 2 * POSITIONS * queries)


def vae_decoder(config: VaeConfig, width: int, height: int) -> int:
    """The VAE's decoder: convolutions, and one attention over all places.

    Those of enlarged images as 2x2 convolutions of the small ones, which is all that they need: see
    `klein_cli.optimize.upsampling`.
    """
    side = PIXELS_PER_TOKEN // LATENTS_PER_TOKEN_SIDE
    positions = width // side * (height // side)
    latents, widths = config.latent_channels, config.decoder_block_out_channels[::-1]
    first, last = widths[0], widths[-1]
    count = positions * latents * latents + positions * 9 * latents * first
    count += 2 * _resnet(first, first, positions)
    count += positions * 4 * first * first + 2 * positions * positions * first
    before = first
    for level, channels in enumerate(widths):
        count += _resnet(before, channels, positions)
        count += config.layers_per_block * _resnet(channels, channels, positions)
        if level < len(widths) - 1:
            positions *= 4
            count += positions * 4 * channels * channels
        before = channels
    count += positions * 9 * last * 3
    return 2 * count


def vae_encoder(config: VaeConfig, width: int, height: int) -> int:
    """The VAE's encoder: convolutions, and one attention over all places."""
    positions, latents, widths = width * height, config.latent_channels, config.block_out_channels
    count, before = positions * 9 * 3 * widths[0], widths[0]
    for level, channels in enumerate(widths):
        count += _resnet(before, channels, positions)
        count += (config.layers_per_block - 1) * _resnet(channels, channels, positions)
        if level < len(widths) - 1:
            positions //= 4
            count += positions * 9 * channels * channels
        before = channels
    last = widths[-1]
    count += 2 * _resnet(last, last, positions)
    count += positions * 4 * last * last + 2 * positions * positions * last
    count += positions * 9 * last * 2 * latents + positions * 4 * latents * latents
    return 2 * count


def _resnet(before: int, after: int, positions: int) -> int:
    shortcut = before * after if before != after else 0
    return positions * (9 * before * after + 9 * after * after + shortcut)
