"""``thrifty serve`` as an operator meets it: it answers, it stops, and a mistake is one line."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from thrifty.cli import main
from thrifty.errors import ThriftyError
from thrifty.serve.guard import read_keys

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


@pytest.fixture
def mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``thrifty serve`` with arguments that it must refuse, and return its line."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["thrifty", "serve", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "--key-env or --keys"),
        (("--key-env", "NO_SUCH_VARIABLE"), "NO_SUCH_VARIABLE holds no key"),
        (("--offer", "mild"), "write NAME=METHOD"),
        (("--method", "frist-try"), "Did you mean first-try"),
        (("--method", "group-think"), "a way of its own"),
        (("--offer", "mild=cgrs(detla=1)"), "no option 'detla'"),
        (("--temperature", "3"), "between 0 and 2"),
        (("--difficulty", "no-such-file.json"), "no-such-file.json"),
        (("--host", "203.0.113.1", "--key-env", "PATH"), "cannot listen"),
    ],
)
def test_a_mistake_is_one_line(mistake: Callable[..., str], arguments: tuple[str, ...], said: str) -> None:
    assert said in mistake(*arguments)


def test_it_answers_until_it_is_told_to_stop() -> None:
    command = [sys.executable, "-m", "thrifty.cli", "serve", "--port", "0", "--method", "cap(budget=20)"]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        assert told.startswith("pebble answers at http://127.0.0.1:"), told
        address = told.split()[3].rstrip(",")
        body = {"model": "pebble", "messages": [{"role": "user", "content": "3 + 4"}], "max_tokens": 60}
        answer = httpx.post(f"{address}/chat/completions", json=body, timeout=600).json()
        assert answer["choices"][0]["message"]["content"]
        assert answer["usage"]["thrifty"]["method"] == "cap(budget=20)"
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) in (0, -signal.SIGTERM)
        assert "Traceback" not in process.stderr.read()


def test_keys_are_read_from_a_variable_and_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hashed(key: str) -> str:
        return hashlib.sha256(key.encode()).hexdigest()

    monkeypatch.setenv("SOME_KEYS", "one, two\n")
    file = tmp_path / "keys"
    file.write_text(f"# the third\n{hashed('three').upper()}  # of somebody\n\n{hashed('four')} fred\n")
    named = {hashed(key): f"key-{hashed(key)[:8]}" for key in ("one", "two", "three")}
    assert read_keys("SOME_KEYS", file) == {**named, hashed("four"): "fred"}
    assert read_keys(None, None) == {}
    file.write_text(f"{hashed('five')}  -\n")  # as sha256sum writes it
    assert list(read_keys(None, file)) == [hashed("five")]
    file.write_text("three\n")
    with pytest.raises(ThriftyError, match="line 1 is no SHA-256"):
        read_keys(None, file)
    file.write_text("# none\n")
    with pytest.raises(ThriftyError, match="holds no key"):
        read_keys(None, file)
    with pytest.raises(ThriftyError, match="cannot read"):
        read_keys(None, tmp_path / "missing")
