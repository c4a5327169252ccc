"""The page: one file, made of three that lie beside this one, which asks nobody but its server."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse


async def page(request: Request) -> HTMLResponse:
    """The page, whose own script and style are all that its policy lets run."""
    html, policy = _made()
    return HTMLResponse(html, headers={"content-security-policy": policy})


@cache
def _made() -> tuple[str, str]:
    """The page and its policy."""
    html, css, js = (
        Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8")
        for kind in ("html", "css", "js")
    )
    policy = (
        f"default-src 'none'; script-src {_hash(js)}; style-src {_hash(css)}; "
        "img-src 'self' blob: data:; connect-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.replace("{css}", css).replace("{js}", js), policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
