"""What other programs call klein's options, and what klein does in place of those it has not."""

from __future__ import annotations

from collections.abc import Collection

_CALLED = {
    "--num-images": (
        "--batch-count --count --num-images-per-prompt --n-iter --iterations --n-samples "
        "--num-outputs --images --number"
    ),
    "--steps": (
        "--num-inference-steps --inference-steps --sampling-steps --num-steps --ddim-steps "
        "--sample-steps"
    ),
    "--aspect": "--ar --aspect-ratio --ratio",
    "--guidance": "--cfg --scale --guidance-strength --cfg-guidance --true-cfg-scale",
    "--negative-prompt": "--negative --neg --no --neg-prompt --uncond-prompt",
    "--size": "--resolution --dimensions --image-size --res --wh",
    "--width": "--w",
    "--height": "--h",
    "--output": (
        "--out --outfile --outdir --output-dir --output-path --save --save-path --filename --dest"
    ),
    "--model": (
        "--ckpt --checkpoint --model-path --model-id --pretrained --pretrained-model --sd- model"
    ),
    "--prompts-file": "--from-file --prompt-file --prompts --input-file --prompts-from-file",
    "--dtype": "--precision --half --fp16 --bf16 --full-precision --float16",
    "--quantize": "--fp8 --quantization --quant --q",
    "--image": (
        "--init --init-image --init-img --input-image --ref --reference --ref-image --input"
    ),
    "--mask": "--mask-image --inpaint --inpaint-mask",
    "--expand": "--outpaint --outpainting",
    "--lora": "--loras --adapter --lora-path --lora-dir --lora-scale",
    "--device": "--gpu --cuda --cpu --accelerator --device-id",
    "--overwrite": "--force --replace",
    "--wildcards": "--dynamic-prompts --wildcard",
    "--wildcards-dir": "--wildcard-dir --wildcards-folder",
    "--verbose": "--debug --log-level --loglevel",
    "--quiet": "--silent --no-progress",
    "--workers": "--num-workers --num-gpus --gpus --processes --jobs",
    "--no-metadata": "--strip-metadata --skip-metadata",
    "--attention": (
        "--attn --sdpa --xformers --flash-attention --attention-backend --opt-sdp-attention"
    ),
    "--show": "--preview --display --view --open",
}
"""An option of klein's -> the names of other programs for it."""

_INSTEAD = {
    "there is one sampler, the model's own (Euler): leave it out": (
        "--sampler --scheduler --sampler-name --sampling-method --sample-method --schedule "
        "--eta --karras"
    ),
    "the ending of -o is the format: -o image.jpg": (
        "--format --output-format --ext --extension --filetype"
    ),
    "edits take the whole image, or the part under --mask: klein edit IMAGE PROMPT": (
        "--strength --denoise --denoising-strength --noise --img2img"
    ),
    "klein enlarges nothing: ask for a larger --size": (
        "--upscale --hires --hires-fix --upscaler --tiling"
    ),
    "klein judges no images: leave it out": (
        "--safety-checker --nsfw --no-safety --disable-safety-checker"
    ),
    "the memory is used as there is: leave it out": (
        "--lowvram --medvram --offload --cpu-offload --low-vram --vae-tiling --vae-slicing"
    ),
    "klein takes prompts as they stand: leave it out": (
        "--enhance --enhance-prompt --magic-prompt --upsample --clip-skip --style --stylize"
    ),
}
"""What to do where klein has nothing of the kind -> the names."""


def hint_for(wrong: str, options: Collection[str]) -> str | None:
    """What to do in place of another program's option; None for one that is not known.

    Of the command's own `options` alone: what it lacks it cannot be told to use.
    """
    name = wrong.partition("=")[0].lower().replace("_", "-")
    for right, others in _CALLED.items():
        if name in others.split():
            return f"did you mean {right}?" if right in options else None
    return next((todo for todo, others in _INSTEAD.items() if name in others.split()), None)
