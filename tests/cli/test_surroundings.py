"""What surrounds a command goes wrong for real: variables, folders of others, hubs that are none.

Each is answered in klein's own words, a line of what and one of what to do, whatever the command,
and `--json` ends with an event all the same.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import PIL.Image
import pytest
import zygote
from fake_hub import fill_cache
from terminal import on_terminal

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals"),
]

NOBODY_LISTENS = "http://127.0.0.1:9"
DRAW = ("-m", "tiny", "--steps", "1", "--size", "128x128", "--device", "cpu", "-s", "1")
OF_THE_HUB = (
    ("models", "pull", "owner/name"),
    ("models", "pull", "owner/name", "--json"),
    ("generate", "x", "-m", "owner/name", "--json"),
)
OF_THE_CACHE = (("models",), ("models", "--json"), ("models", "path", "klein-4b"), *OF_THE_HUB)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def klein(
    *arguments: str, powerless: bool = False, without: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a process whose environment is this, and klein's own otherwise."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "XDG_CACHE")) and not name.lower().endswith("_proxy")
    }
    env = {**clean, "HF_HOME": str(Path("hf").absolute()), "HF_ENDPOINT": NOBODY_LISTENS}
    env |= environment
    env.pop(without, None)
    return zygote.shared().run(arguments, env=env, kill_after=60, powerless=powerless)


def complaint(done: subprocess.CompletedProcess[str], code: int) -> tuple[str, str]:
    """The two lines that a command ended with; under --json an event has said so too."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    *_, what, todo = done.stderr.splitlines()
    assert what.startswith("error: ")
    assert todo.startswith("hint: ")
    assert "Errno" not in what + todo
    error = {"message": what.removeprefix("error: "), "hint": todo.removeprefix("hint: ")}
    if "--json" in done.args:
        assert json.loads(done.stdout.splitlines()[-1]) == {"event": "error", **error}
    else:
        assert done.stdout == ""
    return error["message"], error["hint"]


UNREADABLE = [
    ("HF_HUB_DOWNLOAD_TIMEOUT", "30s", "HF_HUB_DOWNLOAD_TIMEOUT=30"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "", "unset HF_HUB_DOWNLOAD_TIMEOUT"),
    ("HF_HUB_ETAG_TIMEOUT", "1.5", "HF_HUB_ETAG_TIMEOUT=1"),
    ("HF_HUB_ETAG_TIMEOUT", "soon", "HF_HUB_ETAG_TIMEOUT=10"),
    ("HF_HUB_ETAG_TIMEOUT", "-1", "HF_HUB_ETAG_TIMEOUT=10"),
    ("HF_ENDPOINT", "http://127.0.0.1:99999", "HF_ENDPOINT begins with https://"),
    ("HF_ENDPOINT", "http://[::1", "HF_ENDPOINT begins with https://"),
    ("HF_HOME", "", "unset HF_HOME"),
    ("HF_HOME", "~nosuchuser/x", "HF_HOME"),
    ("HF_HUB_CACHE", "~nosuchuser/x", "HF_HUB_CACHE"),
]


@pytest.mark.parametrize(("name", "value", "todo"), UNREADABLE)
def test_a_variable_that_the_hubs_client_cannot_be_imported_with_is_named(
    name: str, value: str, todo: str
) -> None:
    """It was a traceback of int(), on the way to a list of models."""
    what, hint = complaint(klein("models", "--json", **{name: value}), 3)
    assert name in what
    assert todo in hint


@pytest.mark.parametrize("line", OF_THE_CACHE)
def test_it_is_named_by_every_command_that_needs_the_hubs_client(line: tuple[str, ...]) -> None:
    complaint(klein(*line, HF_HUB_ETAG_TIMEOUT="30s"), 3)
    complaint(klein(*line, HF_HOME=""), 3)


def test_what_needs_no_hub_does_not_look_at_its_variables() -> None:
    wrong = {name: value for name, value, _ in (*UNREADABLE, *UNUSABLE)}
    assert klein("generate", "x", *DRAW, "-o", "a.png", **wrong).returncode == 0
    assert klein("info", "a.png", **wrong).returncode == 0


UNUSABLE = [
    ("HF_ENDPOINT", "mirror.example", "begins with https://"),
    ("HF_ENDPOINT", "ftp://mirror.example", "begins with https://"),
    ("ALL_PROXY", "socks5h://127.0.0.1:9", "socksio"),
    ("https_proxy", "socks5://127.0.0.1:9", "socksio"),
    ("HTTPS_PROXY", "socks4://127.0.0.1:9", "HTTPS_PROXY=http://HOST:PORT"),
    ("http_proxy", "http://127.0.0.1:port", "http_proxy=http://HOST:PORT"),
    ("HTTP_PROXY", " http://127.0.0.1:9 ", "HTTP_PROXY=http://HOST:PORT"),
    ("all_proxy", "http://[::1", "all_proxy=http://HOST:PORT"),
    ("HF_TOKEN", "tök en", "copy it again"),
    ("SSL_CERT_FILE", "nowhere.pem", "SSL_CERT_FILE"),
    ("SSL_CERT_FILE", "empty.pem", "SSL_CERT_FILE"),
    ("SSL_CERT_DIR", "nowhere", "SSL_CERT_DIR"),
    ("SSLKEYLOGFILE", "nowhere/keys", "SSLKEYLOGFILE"),
    ("HF_HUB_USER_AGENT_ORIGIN", "ö", "HF_HUB_USER_AGENT_ORIGIN"),
    ("HF_TOKEN_PATH", "pipe", "hf auth login"),
    ("HF_TOKEN_PATH", "folder", "hf auth login"),
    ("HF_TOKEN_PATH", "zeros", "hf auth login"),
]


@pytest.mark.parametrize(("name", "value", "todo"), UNUSABLE)
def test_a_variable_that_no_request_can_be_made_with_is_named(
    name: str, value: str, todo: str
) -> None:
    Path("empty.pem").touch()
    os.mkfifo("pipe")
    Path("folder").mkdir()
    Path("zeros").write_bytes(b"\0\0")
    what, hint = complaint(klein(*OF_THE_HUB[2], **{name: value}), 3)
    assert name in what + hint or value in what
    assert todo in hint


def test_what_asks_the_hub_nothing_does_not_look_at_proxies_and_tokens() -> None:
    wrong = {name: value for name, value, _ in UNUSABLE if name != "HF_TOKEN_PATH"}
    assert klein("models", **wrong).returncode == 0


def test_a_password_is_not_shown() -> None:
    _, hint = complaint(klein(*OF_THE_HUB[0], HTTPS_PROXY="gopher://me:secret@host"), 3)
    assert "secret" not in hint
    what, _ = complaint(klein(*OF_THE_HUB[0], HF_ENDPOINT="http://me:secret@127.0.0.1:9"), 3)
    assert "http://127.0.0.1:9 (HF_ENDPOINT)" in what


def test_the_address_that_cannot_be_reached_is_named_and_so_is_the_proxy() -> None:
    what, hint = complaint(klein("models", "pull", "owner/name"), 3)
    assert f"{NOBODY_LISTENS} (HF_ENDPOINT) cannot be reached" in what
    assert "an HF_ENDPOINT begins with https://" in hint
    proxied = klein(
        "models", "pull", "owner/name", without="HF_ENDPOINT", HTTPS_PROXY="127.0.0.1:9"
    )
    what, hint = complaint(proxied, 3)
    assert "through the proxy in HTTPS_PROXY (127.0.0.1:9)" in what
    assert "HTTPS_PROXY" in hint


@pytest.mark.parametrize(
    ("name", "value"),
    [("TERMINAL_WIDTH", "wide"), ("TERMINAL_WIDTH", "9" * 12), ("COLUMNS", "9" * 12)],
)
def test_a_terminals_size_that_no_page_can_have_is_named(name: str, value: str) -> None:
    """Rich filled the memory with blanks, and Typer showed a traceback of int()."""
    what, hint = complaint(klein("generate", "--help", **{name: value}), 2)
    assert name in what
    assert hint == f"unset {name}"


class Page(BaseHTTPRequestHandler):
    """Answers all there is with a page, as a portal does; `body` for what else is none of a hub."""

    body = b"<html>please log in</html>"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(body: bytes) -> Iterator[str]:
    handler = type("OnePage", (Page,), {"body": body})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("body", [Page.body, b"", b"[]", b"{}", b'{"id": 1, "siblings": [7]}'])
def test_what_answers_otherwise_than_a_hub_is_none(body: bytes) -> None:
    with answering(body) as address:
        what, hint = complaint(klein(*OF_THE_HUB[1], HF_ENDPOINT=address), 3)
    assert f"{address} (HF_ENDPOINT) does not answer as the hub does" in what
    assert "HF_ENDPOINT" in hint


def test_a_hub_that_takes_the_connection_and_never_answers_ends_in_time() -> None:
    """There was no end to it: the client waits without a limit."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        started = time.monotonic()
        done = klein(*OF_THE_HUB[1], HF_ENDPOINT=address, HF_HUB_ETAG_TIMEOUT="1")
        assert time.monotonic() - started < 20
    what, hint = complaint(done, 3)
    assert f"{address} (HF_ENDPOINT) does not answer in time" in what
    assert "HF_HUB_ETAG_TIMEOUT" in hint


@pytest.fixture
def others() -> Iterator[Path]:
    """A folder of somebody else's, which may not even be looked into."""
    folder = Path("others").absolute()
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, 12345, 12345)
    else:
        folder.chmod(0)
    yield folder
    if os.geteuid():
        folder.chmod(0o700)


def test_a_home_of_somebody_else_keeps_nobody_from_drawing(others: Path) -> None:
    """As in a container that runs as a user with root's HOME: every command was a traceback."""
    home = {"HOME": str(others), "without": "HF_HOME", "powerless": True}
    mine = {"XDG_CONFIG_HOME": str(others)}
    for line in (("generate", "x", *DRAW, "-o", "a.png"), ("info", "a.png"), ("gallery", ".")):
        assert klein(*line, **home, **mine).returncode == 0, line


def test_a_cache_of_somebody_else_is_named(others: Path) -> None:
    listed = klein("models", HF_HUB_CACHE=str(others), powerless=True)
    assert listed.returncode == 0
    assert "klein-4b       unknown" in listed.stdout
    assert "tiny           yes" in listed.stdout
    (warning,) = listed.stderr.splitlines()
    assert "cannot be read: Permission denied: set HF_HOME to a folder" in warning
    for line in (("models", "path", "klein-4b"), ("models", "rm", "a/b", "-y"), *OF_THE_HUB):
        what, hint = complaint(klein(*line, HF_HOME=str(others), powerless=True), 3)
        assert "cannot be read: Permission denied" in what
        assert hint == "set HF_HOME to a folder you may read and write"


def test_a_model_of_somebody_else_is_named(others: Path) -> None:
    line = ("generate", "x", "-m", f"{others}/", "-o", "a.png")
    what, _ = complaint(klein(*line, powerless=True), 3)
    assert f"{others} cannot be read: Permission denied" in what


def test_a_cache_that_is_a_file_is_named(tmp_path: Path) -> None:
    Path("file").touch()
    what, hint = complaint(klein("models", "path", "klein-4b", HF_HOME=str(tmp_path / "file")), 3)
    assert "cannot be read: Not a directory" in what
    assert "HF_HOME" in hint


def test_one_repository_that_cannot_be_read_does_not_hide_the_others(
    small_snapshot: Path, others: Path
) -> None:
    """Left by a download under sudo, in a cache that is one's own otherwise."""
    weights = {"model_index.json": (small_snapshot / "model_index.json").read_bytes()}
    fill_cache(Path("hf"), "some/model", weights)
    others.rename("hf/hub/models--black-forest-labs--FLUX.2-klein-4B")
    try:
        listed = klein("models", powerless=True)
    finally:
        Path("hf/hub/models--black-forest-labs--FLUX.2-klein-4B").rename(others)
    assert listed.returncode == 0, listed.stderr
    assert "klein-4b       unknown" in listed.stdout
    assert "some/model" in listed.stdout


@pytest.mark.parametrize(
    "line",
    [
        ("generate", "x", "-m", "tiny", "-o", "others/a.png"),
        ("generate", "x", "-m", "tiny", "-o", "others/sub/"),
        ("generate", "-m", "tiny", "--prompts-file", "others/p.txt"),
        ("generate", "-m", "tiny", "--prompts-file", "closed.txt"),
        ("generate", "x", "-m", "tiny", "-i", "others/a.png", "-o", "a.png"),
        ("generate", "x", "-m", "tiny", "--config", "closed.txt"),
        ("generate", "x", "-m", "tiny", "--wildcards-dir", "others"),
        ("edit", "others", "x", "-m", "tiny", "-o", "out/"),
        ("edit", "mine", "x", "-m", "tiny", "-o", "others/out/"),
        ("info", "others/a.png"),
        ("info", "closed.txt"),
        ("info", "pipe.png"),
        ("reproduce", "others/a.png"),
        ("gallery", "others"),
        ("models", "path", "./others"),
        ("generate", "x", "-m", "./others/model", "-o", "a.png"),
        ("bench", "--from", "others/a.json"),
        ("bench", "--from", "closed.txt"),
        ("verify", "-m", "tiny", "--html", "others/a.html"),
    ],
)
def test_what_may_not_be_read_or_written_is_named(line: tuple[str, ...], others: Path) -> None:
    """Each of them by its own name, without Python's words, and a pipe is not waited for."""
    closed = Path("closed.txt")
    closed.write_text("a cat")
    if os.geteuid() == 0:
        os.chown(closed, 12345, 12345)
    closed.chmod(0)
    os.mkfifo("pipe.png")
    Path("mine").mkdir()
    PIL.Image.new("RGB", (16, 16)).save("mine/a.png")
    done = klein(*line, powerless=True)
    what, _ = complaint(done, done.returncode)
    assert done.returncode in (2, 3)
    assert any(name in what for name in ("others", "closed.txt", "pipe.png"))


def test_a_present_folder_that_may_not_be_read_is_no_traceback(others: Path) -> None:
    os.chdir(others)
    done = klein("generate", "x", "-m", "tiny", powerless=True)
    os.chdir(others.parent)
    complaint(done, 2)


def test_a_folder_that_is_gone_is_said_to_be(tmp_path: Path) -> None:
    """With an absolute path too: torch itself does not start in such a place."""
    lines = (
        ("generate", "x", *DRAW),
        ("generate", "x", *DRAW, "-o", str(tmp_path / "a.png"), "--json"),
        ("info", str(tmp_path / "a.png")),
        ("models",),
    )
    for line in lines:
        launch = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
        launch += "from klein_cli.__main__ import main; sys.exit(main())"
        done = subprocess.run(
            [sys.executable, "-c", launch, *line], capture_output=True, text=True, check=False
        )
        done.args = line
        assert complaint(done, 2) == ("the folder you are in is gone", "cd to one that exists")
    assert not Path("a.png").exists()


@pytest.mark.parametrize(
    "line",
    [
        ("generate", "x", *DRAW, "-o", "s3://bucket/x/"),
        ("generate", "x", *DRAW, "-o", "gs://bucket/{seed}.png"),
        ("generate", *DRAW, "--prompts-file", "https://host/prompts.txt"),
        ("generate", *DRAW, "--prompts-file", "rows.jsonl", "-o", "out/"),
        ("generate", "x", "-m", "s3://bucket/model", "-o", "a.png"),
        ("info", "https://host/a.png"),
        ("reproduce", "https://host/a.png"),
        ("gallery", "s3://bucket"),
        ("verify", "-m", "tiny", "--html", "s3://bucket/a.html"),
        ("info", "a.png", "--config", "https://host/config.toml"),
    ],
)
def test_an_address_is_no_path(line: tuple[str, ...]) -> None:
    """It made a folder named `s3:`."""
    Path("rows.jsonl").write_text('{"prompt": "x", "output": "s3://bucket/a.png"}')
    what, hint = complaint(klein(*line, "--json"), 2)
    assert "is an address, not a path" in what
    assert "path" in hint
    assert {path.name for path in Path().iterdir()} <= {"rows.jsonl", "hf"}


@pytest.mark.parametrize(
    "address", ["https://huggingface.co/a/b", "https://hf.co/a/b/tree/main", "hf://a/b"]
)
def test_the_address_of_a_repository_leads_to_its_id(address: str) -> None:
    what, hint = complaint(klein("generate", "x", "-m", address, "--json"), 3)
    assert address in what
    assert hint == "give the hub id alone: a/b"


@pytest.mark.parametrize(
    "line",
    [
        ("generate", "x", "--nosuch", "--json"),
        ("nosuch", "--json"),
        ("generate", "--json"),
        ("generate", "x", "--steps", "few", "--json"),
        ("generate", "x", "--config", "nowhere.toml", "--json"),
        ("info", "nowhere.png", "--json"),
        ("gallery", "nowhere", "--json"),
        ("models", "pull", "not a model", "--json"),
        ("reproduce", "nowhere.png", "--json"),
        ("doctor", "--nosuch", "--json"),
    ],
)
def test_json_ends_with_an_event_whoever_finds_the_error(line: tuple[str, ...]) -> None:
    """What was refused before there was a report had none."""
    done = klein(*line)
    complaint(done, done.returncode)
    assert done.returncode in (2, 3)
    assert sum(json.loads(each)["event"] == "error" for each in done.stdout.splitlines()) == 1


def test_a_bug_ends_with_an_event_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bug = "import sys; from klein_cli.output import gallery as g; g.images_in = lambda f: 1 / 0; "
    bug += "from klein_cli.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", bug, "gallery", ".", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    event = json.loads(done.stdout.splitlines()[-1])
    assert event["event"] == "error"
    assert event["hint"] == "this is a bug in klein"


SIGNALS = [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]


def started(snapshot: Path, *more: str) -> subprocess.Popen[str]:
    """A run of many small images, which has begun to draw."""
    Path("p.txt").write_text("a cat\n" * 400)
    size = ("--size", "128x128", "--steps", "2", "--device", "cpu", "-m", str(snapshot), "-s", "1")
    line = ("generate", "--prompts-file", "p.txt", "-o", "o/", *size, *more)
    run = subprocess.Popen(
        [sys.executable, "-m", "klein_cli", *line],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    while '"picture"' not in (said := run.stdout.readline()):
        assert said, run.communicate()
    return run


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_run_as_ctrl_c_does(
    number: signal.Signals, code: int, small_snapshot: Path
) -> None:
    """docker stop, systemctl stop, a closed terminal: it died with its cursor hidden, wordless."""
    run = started(small_snapshot, "--json", "--gallery")
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == code
    last = json.loads(out.splitlines()[-1])
    assert last["event"] == "interrupted"
    assert 0 < last["made"] < last["wanted"] == 400
    assert f"interrupted: {last['made']} of 400 images made; the same command" in err
    assert len(list(Path("o").glob("*.png"))) == last["made"]
    assert not list(Path("o").glob("*.tmp"))


@pytest.mark.parametrize(("moved", "gone"), [("o", "elsewhere"), ("o/manifest.jsonl", "m.jsonl")])
def test_a_run_whose_folder_or_manifest_is_moved_away_stops(
    moved: str, gone: str, small_snapshot: Path
) -> None:
    """It wrote on into a folder of the same name, with a manifest in another."""
    run = started(small_snapshot, "--json")
    os.rename(moved, gone)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "error: o/manifest.jsonl is gone: " in err
    assert "--resume" in err
    events = [json.loads(line) for line in out.splitlines()]
    assert any(event["event"] == "error" for event in events)
    assert events[-1]["made"] < 400
    drawn = len(list(Path(gone if moved == "o" else "o").glob("*.png")))
    assert drawn >= events[-1]["made"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are not listed here")
def test_a_signal_gives_the_cursor_back(small_snapshot: Path) -> None:
    Path("p.txt").write_text("a cat\n" * 4000)
    line = ("generate", "--prompts-file", "p.txt", "-o", "o/", "-m", str(small_snapshot))
    size = ("--size", "128x128", "--steps", "2", "--device", "cpu", "-s", "1")

    ended = []

    def end(written: bytes) -> bytes:
        if b".png" in written and not ended:
            mine = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            is_it = (b"p.txt" in Path(f"/proc/{child}/cmdline").read_bytes() for child in mine)
            ended.extend(int(child) for child, found in zip(mine, is_it, strict=True) if found)
            os.kill(ended[0], signal.SIGTERM)
        return b""

    code, written = on_terminal(*line, *size, answer=end)
    assert code == 143
    assert b"interrupted: " in written
    assert written.rindex(b"\x1b[?25h") > written.rindex(b"\x1b[?25l")
