"""The status page: it shows what was counted, runs nothing but its own script, and is not for strangers."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Running, replay, serving

from thrifty.serve.guard import Door, digest
from thrifty.serve.saved import VanillaMean

BROWSER = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None)
ASKED: dict[str, Any] = {
    "model": "replay@cap(budget=3)",
    "messages": [{"role": "user", "content": "question"}],
    "thrifty": {"explain": True},
}


def a_model() -> Any:
    return replay(question="<think>a b c d e f</think>g")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(a_model(), vanilla=VanillaMean(1000.0)) as running:
        yield running


def hashes(policy: str, of: str) -> list[str]:
    (found,) = re.findall(rf"{of} ([^;]*);", policy)
    return [hash.strip("'") for hash in found.split()]


def test_the_page_runs_its_own_script_and_nothing_else(server: Running) -> None:
    page = server.get("/status")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    for tag, of in (("script", "script-src"), ("style", "style-src")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.text, re.DOTALL)
        assert hashes(policy, of) == [f"sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}"]
    assert not re.search(
        r"https?://|<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:,)|\son\w+=|style=", page.text
    )
    assert "innerHTML" not in page.text, "names come from requests"


def test_it_takes_the_key_as_a_password_and_nothing_else_does() -> None:
    with serving(a_model(), Door({digest("mine"): "mine"})) as server:
        refused = server.get("/status")
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Basic ")
        for path in ("/status", "/status.json"):
            assert server.get(path, auth=("anybody", "mine")).status_code == 200
            assert server.get(path, auth=("mine", "theirs")).status_code == 401
            assert server.get(path, headers={"Authorization": "Bearer mine"}).status_code == 200
            for broken in ("Basic", "Basic !", "Basic bWluZQ==", "Basic \xff"):
                assert server.get(path, headers={"Authorization": broken.encode("latin-1")}).status_code == 401
        for path in ("/metrics", "/v1/models"):
            assert server.get(path, auth=("anybody", "mine")).status_code == 401
        assert server.post("/v1/chat/completions", ASKED, auth=("anybody", "mine")).status_code == 401


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium: apt-get install chromium-headless-shell")
def test_a_browser_shows_it(server: Running, tmp_path: Path) -> None:
    usage = server.post("/v1/chat/completions", ASKED).json()["usage"]["thrifty"]
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--enable-logging=stderr", "--virtual-time-budget=5000", "--dump-dom", f"{server.address}/status"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True, env={**os.environ, "HOME": str(tmp_path)}
    )
    shown = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", done.stdout))
    figures = server.get("/status.json").json()
    assert shown["tokens spent"] == f"{figures['total_tokens']:,}"
    assert shown["tokens saved"] == f"{usage['saved']['tokens']:,}" == f"{figures['saved']['tokens']:,}"
    assert "<tr><td>cap</td><td>1</td>" in done.stdout
    (line,) = re.findall(r'<polyline id="saved" points="([^"]*)"', done.stdout)
    assert len(line.split()) >= 2, "it asks again and again"
    assert '<p id="lost" role="status"></p>' in done.stdout, "nothing was lost"
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr
