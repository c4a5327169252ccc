"""How long a model takes from its folder and from files of each kind, and what they draw.

    python scripts/measure_files.py FOLDER --out FILES     # FOLDER: a snapshot, of make_snapshot.py

Writes the transformer of the snapshot to a file of each kind, once, and draws one image from each
in a process of its own, with the files in memory: the seconds are those of the whole process, the
best of some. The bits of BFL's file must be those of the folder.
"""

from __future__ import annotations

import argparse
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from klein_cli.checkpoints.folder import weight_files
from klein_cli.checkpoints.gguf import PACKED, PLAIN

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Packed = tuple[str, dict[str, Tensor]]


def main() -> None:
    """Write what is not there yet, then draw from each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", default="1024x1024")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    files = {name: options.out / name for name in KINDS}
    missing = [name for name, path in files.items() if not path.exists()]
    if missing:
        tensors = as_bfl(options.folder / "transformer")
        for name in missing:
            KINDS[name](tensors, files[name])
            print(f"{name}: {files[name].stat().st_size / 1e9:.2f} GB")
    size = ["--size", options.size]
    seconds, wanted = drawn(options.folder, size, options.out / "folder.png", options.runs)
    print(f"{'the folder':24} {seconds:6.2f} s")
    for name, path in files.items():
        more = ["--transformer", str(path), *size]
        taken, pixels = drawn(options.folder, more, options.out / f"{name}.png", options.runs)
        same = "the same image" if (pixels == wanted).all() else "another image"
        print(f"{name:24} {taken:6.2f} s  {taken / seconds:.2f} of the folder's, {same}")


def drawn(
    folder: Path, more: list[str], image: Path, runs: int
) -> tuple[float, numpy.typing.NDArray[numpy.uint8]]:
    """The seconds of the best of some runs, and the image."""
    line = ["generate", "a red fox", "-m", str(folder), *more, "-s", "1", "-y", "-q", "-o"]
    taken = []
    for _ in range(runs + 1):  # the first brings the files into memory
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "klein_cli", *line, str(image)], check=True)
        taken.append(time.perf_counter() - started)
    return min(taken[1:]), numpy.asarray(Image.open(image))


def as_bfl(folder: Path) -> dict[str, Tensor]:
    """The official transformer by BFL's names."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "fixtures"))
    from model_files import bfl_transformer

    paths = weight_files(folder)
    return bfl_transformer({name: t for path in paths for name, t in load_file(path).items()})


def is_packed(name: str, tensor: Tensor) -> bool:
    """Whether black-forest-labs' files of few bits have this tensor in them."""
    return tensor.ndim == 2 and "blocks." in name


def write_plain(tensors: dict[str, Tensor], path: Path) -> None:
    """In bfloat16."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def with_scales(pack: Callable[[Tensor], Packed]) -> Callable[[dict[str, Tensor], Path], None]:
    """Safetensors whose large matrices are packed, each with a declaration beside it."""

    def write(tensors: dict[str, Tensor], path: Path) -> None:
        found = {}
        for name, tensor in tensors.items():
            if not is_packed(name, tensor):
                found[name] = tensor.contiguous()
                continue
            kind, parts = pack(tensor.to(DEVICE).float())
            layer = name.removesuffix(".weight")
            said = f'{{"format":"{kind}"}}'.encode()
            found[f"{layer}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
            found |= {f"{layer}.{part}": one.cpu().contiguous() for part, one in parts.items()}
        save_file(found, path)

    return write


def fp8(weight: Tensor) -> Packed:
    """One scale a layer."""
    scale = weight.abs().amax() / 448
    return "float8_e4m3fn", {
        "weight": (weight / scale).to(torch.float8_e4m3fn),
        "weight_scale": scale,
    }


def nvfp4(weight: Tensor) -> Packed:
    """ComfyUI's layout: the even column above, scales of 16 columns swizzled in tiles."""
    rows, columns = weight.shape
    scale_2 = weight.abs().amax() / (448 * 6)
    blocks = weight.view(rows, -1, 16)
    scales = (blocks.abs().amax(-1) / 6 / scale_2).clamp(2**-9, 448).to(torch.float8_e4m3fn)
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device=weight.device)
    units = (blocks / (scales.float() * scale_2)[..., None]).view(rows, columns)
    codes = torch.bucketize(units.abs(), (sizes[1:] + sizes[:-1]) / 2) + 8 * (units < 0)
    tiles = scales.view(torch.uint8).view(rows // 128, 4, 32, columns // 64, 4)
    swizzled = tiles.permute(0, 3, 2, 1, 4).reshape(rows, columns // 16)
    return "nvfp4", {
        "weight": (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8),
        "weight_scale": swizzled.contiguous().view(torch.float8_e4m3fn),
        "weight_scale_2": scale_2,
    }


def as_gguf(kind: str) -> Callable[[dict[str, Tensor], Path], None]:
    """GGUF: Q8_0 as its reference rounds it, others with random codes, for their time alone."""
    number, block, size = next((n, k.block, k.size) for n, k in PACKED.items() if k.name == kind)
    bf16 = next(n for n, k in PLAIN.items() if k.name == "BF16")

    def lines(tensors: dict[str, Tensor]) -> Iterator[tuple[bytes, int]]:
        at = 0
        for name, tensor in tensors.items():
            packed = is_packed(name, tensor)
            length = tensor.numel() // block * size if packed else 2 * tensor.numel()
            sides = tensor.shape[::-1]
            yield (
                (
                    text(name)
                    + struct.pack(f"<I{len(sides)}Q", len(sides), *sides)
                    + struct.pack("<IQ", number if packed else bf16, at)
                ),
                length,
            )
            at += -(-length // 32) * 32

    def write(tensors: dict[str, Tensor], path: Path) -> None:
        found = list(lines(tensors))
        head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
        head += text("general.architecture") + struct.pack("<I", 8) + text("flux")
        head += b"".join(line for line, _ in found)
        with path.open("wb") as file:
            file.write(head + bytes(-len(head) % 32))
            for (name, tensor), (_, length) in zip(tensors.items(), found, strict=True):
                data = tensor.contiguous().view(torch.uint8)
                if is_packed(name, tensor):
                    data = blocks_of(tensor.to(DEVICE).float(), kind, size)
                file.write(data.cpu().numpy().tobytes() + bytes(-length % 32))

    return write


def blocks_of(weight: Tensor, kind: str, size: int) -> Tensor:
    """The rows of a matrix in blocks, as bytes."""
    if kind == "Q8_0":
        blocks = weight.view(-1, 32)
        scale = blocks.abs().amax(1, keepdim=True) / 127
        codes = (blocks / scale.clamp(min=1e-12)).round().to(torch.int8).view(torch.uint8)
        return torch.cat([scale.half().view(torch.uint8), codes], dim=1)
    blocks = torch.randint(0, 256, (weight.numel() // 256, size), dtype=torch.uint8, device=DEVICE)
    small = torch.full((len(blocks), 2), 1e-5, dtype=torch.float16, device=DEVICE)
    blocks[:, :4] = small.view(torch.uint8)
    return blocks


def text(value: str) -> bytes:
    """A string of GGUF."""
    return struct.pack("<Q", len(value)) + value.encode()


KINDS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "bfl-bf16.safetensors": write_plain,
    "fp8.safetensors": with_scales(fp8),
    "nvfp4.safetensors": with_scales(nvfp4),
    "Q8_0.gguf": as_gguf("Q8_0"),
    "Q4_K.gguf": as_gguf("Q4_K"),
}


if __name__ == "__main__":
    main()
