"""The status page: what was spent and saved, live. One file, nothing from elsewhere, and no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import Response


@cache
def _page() -> tuple[str, str]:
    """Return the page, and the policy that lets it run its own script and wear its own style, and nothing else."""
    page = files("thrifty.serve").joinpath("status.html").read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(i.encode()).digest()).decode()}'" for i in inside)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, policy


def status_page() -> Response:
    """Return the page; it asks for ``/status.json`` again and again."""
    page, policy = _page()
    headers = {
        "content-security-policy": policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Response(page, media_type="text/html", headers=headers)
