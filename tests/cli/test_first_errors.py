"""What a new user meets first goes wrong for real: one line of what, one of what to do, a page."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy
import pytest
import zygote
from PIL import Image
from records import record
from safetensors.numpy import save_file

from klein_cli.output.metadata import parameters
from klein_cli.output.png import encode
from klein_cli.recipe import Recipe
from klein_cli.run.resume.manifest import opened
from klein_cli.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"
HEADINGS = re.findall(r"^### `(.*)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
LAUNCH = "import sys; from klein_cli.cli.app import main; sys.exit(main(sys.argv[1:]))"
ROWS = ("generate", "a cat", "-m", "tiny", "-n", "2")
PROVOKED: dict[str, Callable[[Ground], tuple[int, str]]] = {}


class Ground:
    """A folder to go wrong in."""

    def __init__(self, snapshot: Path, hub: str) -> None:
        self.snapshot = snapshot
        self.hub = hub

    def klein(
        self, *arguments: str, before: str = "", shell: str = "", **environment: str
    ) -> tuple[int, str]:
        """Run a command line -> (exit code, stderr); `before` is Python, `shell` a wrapper."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "CUDA_"))}
        quiet = {"HF_HOME": str(Path("hf").absolute()), "NO_PROXY": "*", "no_proxy": "*"}
        env = clean | quiet | environment
        if before or shell:
            command = [*shell.split(), sys.executable, "-c", f"{before}\n{LAUNCH}", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        else:
            done = zygote.shared().run(arguments, env=env)
        return done.returncode, done.stderr


def provoke(heading: str) -> Callable[[Callable[[Ground], tuple[int, str]]], None]:
    """Keep the way to an error under its heading on the page."""

    def keep(way: Callable[[Ground], tuple[int, str]]) -> None:
        PROVOKED[heading] = way

    return keep


def without_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")


@provoke("no GPU was found (…), and … takes minutes an image without one")
def _(ground: Ground) -> tuple[int, str]:
    without_gpu()
    return ground.klein("generate", "a cat")


@provoke("--device cuda is not available: …")
def _(ground: Ground) -> tuple[int, str]:
    without_gpu()
    return ground.klein("generate", "a cat", "-m", "tiny", "--device", "cuda")


@provoke("flash-attn runs on CUDA only")
def _(ground: Ground) -> tuple[int, str]:
    line = ("generate", "a cat", "-m", "tiny", "--device", "cpu", "--attention", "flash-attn")
    return ground.klein(*line)


@provoke("--quantize fp8 needs an NVIDIA GPU")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("generate", "a cat", "-m", "tiny", "--device", "cpu", "--quantize", "fp8")


@provoke("an image of … did not fit into the memory of …")
def _(ground: Ground) -> tuple[int, str]:
    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory of a process cannot be measured here")
    limit = (
        "import resource, torch\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "most = pages * resource.getpagesize() + 200_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
    )
    line = ("generate", "a cat", "--size", "4096x4096", "--steps", "1", "--device", "cpu", "-q")
    return ground.klein(*line, "-m", str(ground.snapshot), before=limit)


@provoke("there is no model called …")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("generate", "a cat", "-m", "klein4b")


@provoke("there is no folder …")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("generate", "a cat", "-m", "./models/klein")


@provoke("there is no file …")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("generate", "a cat", "-m", "flux-2-klein-4b.safetensors")


@provoke("… is quantised by …, which klein does not unpack")
def _(ground: Ground) -> tuple[int, str]:
    names = ("lin.weight", "lin.weight.absmax", "lin.weight.quant_map")
    held = {f"double_stream_modulation_img.{name}": numpy.zeros(4, numpy.uint8) for name in names}
    save_file(held, "nf4.safetensors")
    return ground.klein("generate", "a cat", "-m", "tiny", "--transformer", "nf4.safetensors")


@provoke("… holds no weights: there is no …")
def _(ground: Ground) -> tuple[int, str]:
    shutil.copytree(ground.snapshot, "half")
    for weights in Path("half/transformer").glob("*.safetensors*"):
        weights.unlink()
    return ground.klein("generate", "a cat", "-m", "./half", "--device", "cpu")


@provoke("… is not on this machine and … cannot be reached")
def _(ground: Ground) -> tuple[int, str]:
    line = ("generate", "a cat", "-m", "klein-4b", "--device", "cpu")
    return ground.klein(*line, HF_ENDPOINT="http://127.0.0.1:9")


@provoke("… does not answer as the hub does (…, not data)")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("models", "pull", "some/page", HF_ENDPOINT=ground.hub)


@provoke("the models' folder … cannot be read: …")
def _(ground: Ground) -> tuple[int, str]:
    Path("file").touch()
    return ground.klein("models", "path", "klein-4b", HF_HOME=str(Path("file").absolute()))


@provoke("the folder you are in is gone")
def _(ground: Ground) -> tuple[int, str]:
    leave = "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')"
    return ground.klein("generate", "a cat", "-m", "tiny", before=leave)


@provoke("… is an address, not a path")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("generate", "a cat", "-m", "tiny", "-o", "s3://bucket/images/")


@provoke("… is gone: the folder was moved or emptied while the run went on")
def _(ground: Ground) -> tuple[int, str]:
    move = (
        "import os\n"
        "from klein_cli.run import runner\n"
        "encode = runner.encode\n"
        "def moving(*given):\n"
        "    if os.path.exists('out'): os.rename('out', 'elsewhere')\n"
        "    return encode(*given)\n"
        "runner.encode = moving"
    )
    line = ("-m", str(ground.snapshot), "--size", "64x64", "--steps", "1", "--device", "cpu")
    return ground.klein(
        "generate", "a cat", "-q", "-n", "2", "-s", "1", "-o", "out/", *line, before=move
    )


@provoke("… requires you to accept its terms")
def _(ground: Ground) -> tuple[int, str]:
    line = ("generate", "a cat", "-m", "gated/model", "--device", "cpu")
    return ground.klein(*line, HF_ENDPOINT=ground.hub)


@provoke("… is not on the hub, or is private")
def _(ground: Ground) -> tuple[int, str]:
    line = ("generate", "a cat", "-m", "nobody/model", "--device", "cpu")
    return ground.klein(*line, HF_ENDPOINT=ground.hub)


@provoke("… already exists")
def _(ground: Ground) -> tuple[int, str]:
    Path("cat.png").write_bytes(b"mine")
    return ground.klein("generate", "a cat", "-m", "tiny", "-o", "cat.png")


@provoke("cannot write in the folder …")
def _(ground: Ground) -> tuple[int, str]:
    if not Path("/proc").is_dir():
        pytest.skip("no folder here that nobody can write in")
    return ground.klein("generate", "a cat", "-m", "tiny", "-o", "/proc/")


@provoke("another run is writing into …")
def _(ground: Ground) -> tuple[int, str]:
    with opened(Path("out")):
        return ground.klein(*ROWS, "-o", "out/")


@provoke("no run in this folder began with --seed …; the last began with …")
def _(ground: Ground) -> tuple[int, str]:
    with opened(Path("out")) as manifest:
        manifest.begin(1, model="tiny", seed=5)
    return ground.klein(*ROWS, "-o", "out/", "-s", "6", "--resume")


@provoke("--ray … needs Ray, which is not installed")
def _(ground: Ground) -> tuple[int, str]:
    without = "import importlib.util\nimportlib.util.find_spec = lambda name, package=None: None"
    return ground.klein(*ROWS, "--ray", "auto", before=without)


@provoke("cannot write …: No space left on device")
def _(ground: Ground) -> tuple[int, str]:
    Path("full").mkdir()
    mount = "mount -t tmpfs -o size=16k none full"
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("no file system can be mounted here")
    Path("run.sh").write_text(f'{mount} && exec "$@"\n')
    line = ("generate", "a cat", "-m", str(ground.snapshot), "--size", "256x256", "--steps", "1")
    return ground.klein(
        *line, "-s", "1", "--device", "cpu", "-o", "full/a.png", shell="unshare -rm sh run.sh"
    )


@provoke("there is no option …")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("generate", "a cat", "--widht", "512")


@provoke("there is no command …")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("a red fox")


@provoke("there is no prompt")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("generate", "-m", "tiny")


@provoke("width … is not a multiple of 16")
def _(ground: Ground) -> tuple[int, str]:
    return ground.klein("generate", "a cat", "-m", "tiny", "--size", "200x200")


@provoke("… sets …, which klein does not know")
def _(ground: Ground) -> tuple[int, str]:
    Path("my.toml").write_text("modle = 'tiny'")
    return ground.klein("generate", "a cat", "--config", "my.toml")


@provoke("… holds no recipe")
def _(ground: Ground) -> tuple[int, str]:
    Image.new("RGB", (16, 16)).save("plain.png")
    return ground.klein("info", "plain.png")


@provoke("… was made with …, which is not on this machine")
def _(ground: Ground) -> tuple[int, str]:
    recipe = Recipe(
        prompt="a", seed=1, width=512, height=512, steps=4, guidance=1.0, model="klein-4b"
    )
    written = record(recipe, Settings(device="cpu"), revision="ab" * 20, provenance={})
    pixels = numpy.zeros((512, 512, 3), dtype=numpy.uint8)
    Path("fox.png").write_bytes(encode(pixels, ".png", written, parameters(recipe)))
    return ground.klein("reproduce", "fox.png")


class Hub(BaseHTTPRequestHandler):
    """Keeps everything of one owner behind a gate, has a page for a model, and nothing else."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "some/page" in self.path:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        gated = "gated/" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def ground(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_snapshot: Path
) -> Iterator[Ground]:
    monkeypatch.chdir(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield Ground(small_snapshot, f"http://127.0.0.1:{server.server_address[1]}")
    server.shutdown()
    server.server_close()


def test_every_error_on_the_page_is_provoked_here() -> None:
    assert set(HEADINGS) == set(PROVOKED)


@pytest.mark.process
@pytest.mark.parametrize("heading", HEADINGS)
def test_it_is_one_line_of_what_and_one_of_what_to_do(heading: str, ground: Ground) -> None:
    code, err = PROVOKED[heading](ground)
    assert code in (1, 2, 3, 4), err
    *rest, what, todo = err.splitlines()
    assert all(re.match(r"(seed|warning): ", line) for line in rest), err
    assert re.fullmatch("error: .*" + re.escape(heading).replace("…", ".+") + ".*", what), what
    assert re.fullmatch(r"hint: .{5,}", todo), todo
    assert len(what) < 400
