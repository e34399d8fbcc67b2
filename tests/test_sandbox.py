"""Attacks on the sandbox, in several worlds: this machine, and the poorer machines that it can be made into.

Each claim is tested both ways: where a protection is reported the attack fails, and where it is not the Result says so.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest

from thrifty.errors import ThriftyError
from thrifty.sandbox import PROTECTIONS, Isolation, Limits, Result, isolation, run

STRANGER = 54321
UNSHARE, PRCTL, LANDLOCK = {"x86_64": (272, 157, 444), "aarch64": (97, 167, 444)}.get(platform.machine(), (0, 0, 0))
WORLDS = {
    "here": ((), False),
    "user": ((), True),
    "container": ((UNSHARE,), False),  # what Docker's default filter leaves
    "container user": ((UNSHARE,), True),
    "bare": ((UNSHARE, LANDLOCK, PRCTL), False),
    "bare user": ((UNSHARE, LANDLOCK, PRCTL), True),
}
"""System calls that the kernel shall refuse (of prctl only new filters), and whether to be root no longer."""

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
pytestmark = needs_linux
worlds = pytest.mark.parametrize("world", WORLDS)


def libc(name: str, *arguments: object) -> None:
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*words) == -1:
        raise OSError(ctypes.get_errno(), name)


def enter(refused: tuple[int, ...], unprivileged: bool) -> None:
    """Turn this process into one on a poorer machine, by the kernel's own means."""
    if unprivileged and os.geteuid() == 0:
        closed = [folder for folder in reversed(Path(sys.base_prefix).parents) if not folder.stat().st_mode & 1]
        if closed:  # Python is installed in root's home: show others that and nothing else of it
            libc("unshare", 0x20000)
            libc("mount", None, b"/", None, 0x44000, None)
            stage = tempfile.mkdtemp().encode()
            python = os.fsencode(sys.base_prefix)
            libc("mount", python, stage, None, 0x5000, None)
            libc("mount", b"tmpfs", bytes(closed[0]), b"tmpfs", 0, b"mode=755")
            Path(sys.base_prefix).mkdir(parents=True)
            libc("mount", stage, python, None, 0x2000, None)
            Path(os.fsdecode(stage)).rmdir()
        os.setgroups([])
        os.setresgid(STRANGER, STRANGER, STRANGER)
        os.setresuid(STRANGER, STRANGER, STRANGER)
    steps = [(0x20, 0, 0, 0)]
    for number in refused:
        if number == PRCTL:
            steps += [(0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 22)]
        else:
            steps += [(0x15, 0, 1, number)]
        steps += [(0x06, 0, 0, 0x50001)]
    steps += [(0x06, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    libc("prctl", 38, 1, 0, 0, 0)
    libc("prctl", 22, 2, struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)), 0, 0)


def run_in(world: str, code: str, **limits: float) -> Result:
    """Run a program in the sandbox on another machine; `WORLD` in its text is the process that asks for it."""
    script = Path(__file__).resolve()
    job = json.dumps({"world": world, "code": code, "limits": limits})
    done = subprocess.run(
        [sys.executable, str(script)], input=job, capture_output=True, text=True, cwd="/", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout)
    return Result(**{**fields, "isolation": Isolation(**fields["isolation"])})


def running(marker: str) -> list[str]:
    """Return the processes whose command line has a marker."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            found += [file.parent.name] if marker.encode() in file.read_bytes() else []
    return found


@cache
def isolation_in(world: str) -> Isolation:
    return run_in(world, "").isolation


@pytest.fixture
def marker() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def secrets() -> Iterator[tuple[Path, Path]]:
    """Yield a file in the home directory and one that every user may read and write."""
    home = Path.home() / f".thrifty-sandbox-test-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(folder, "secret")
        Path(folder).chmod(0o777)
        try:
            for path in (home, shared):
                path.write_text("secret")
            shared.chmod(0o666)
            yield home, shared
        finally:
            home.unlink(missing_ok=True)


# --- ordinary programs ---


def test_ordinary_program() -> None:
    result = run(
        "import math, itertools, fractions, re, collections, json, random, sys\n"
        "print(math.comb(5, 2), fractions.Fraction(1, 3) + 1, re.findall('[0-9]', 'a1b2'))\n"
        "print(collections.Counter('aab').most_common(1), list(itertools.permutations('ab')))\n"
        "print('naïve ∑ 漢字 🙂'); print('oops ü', file=sys.stderr); print(sys.stdin.read() == '')\n"
    )
    assert (result.status, result.code) == ("ok", 0)
    assert result.stdout == (
        "10 4/3 ['1', '2']\n[('a', 2)] [('a', 'b'), ('b', 'a')]\nnaïve ∑ 漢字 🙂\nTrue\n"
    )
    assert result.stderr == "oops ü\n"
    assert 0 < result.seconds < 10


@worlds
def test_ordinary_program_in_every_world(world: str) -> None:
    result = run_in(
        world,
        "import os, sys, tempfile, subprocess, threading\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "assert os.listdir('.') == []\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "subprocess.run(['true'], check=True)\n"
        "print(os.urandom(0), open(os.devnull).read(), sys.version_info[:2] == " + f"{sys.version_info[:2]})\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "open('file', 'w').write('kept'); print(open('file').read())\n",
    )
    assert result.stdout == "b''  True\nthread\nkept\n", result.stderr
    assert result.status == "ok"


@pytest.mark.parametrize(
    ("code", "status", "number", "last"),
    [
        ("", "ok", 0, ""),
        ("raise SystemExit(3)", "error", 3, ""),
        ("1 / 0", "error", 1, "ZeroDivisionError: division by zero"),
        ("input()", "error", 1, "EOFError: EOF when reading a line"),
        ("def f(: pass", "error", 1, "SyntaxError: invalid syntax"),
        ("def f(): f()\nf()", "error", 1, "RecursionError: maximum recursion depth exceeded"),
        ("import numpy", "error", 1, "ModuleNotFoundError: No module named 'numpy'"),
        ("import ctypes; ctypes.string_at(0)", "crash", -signal.SIGSEGV, ""),
        ("import os; os.abort()", "crash", -signal.SIGABRT, ""),
        ("import os; os.kill(os.getpid(), 9)", "crash", -signal.SIGKILL, ""),
    ],
)
def test_endings(code: str, status: str, number: int, last: str) -> None:
    result = run(code)
    assert (result.status, result.code) == (status, number)
    assert result.stderr.rstrip().rpartition("\n")[2] == last


@pytest.mark.parametrize("code", ["print('\ud800')", "print('a\0b')"])
def test_text_that_is_no_program(code: str) -> None:
    result = run(code)
    assert result.status == "error"
    assert "SyntaxError" in result.stderr or "ValueError" in result.stderr


def test_same_program_prints_the_same_again() -> None:
    code = "print({str(i) for i in range(50)})"
    assert run(code).stdout == run(code).stdout


def test_runs_in_threads_at_once() -> None:
    run("")
    files = len(os.listdir("/proc/self/fd"))
    folders = set(Path(tempfile.gettempdir()).glob("thrifty-sandbox-*"))
    code = "import os\nopen('x', 'w').write('{0}')\nif os.fork() == 0: os._exit(0)\nos.wait()\nprint(open('x').read() * 9999)"
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: run(code.format(i), Limits(seconds=60)), range(8)))
    assert [result.stdout for result in results] == [str(i) * 9999 + "\n" for i in range(8)]
    assert len(os.listdir("/proc/self/fd")) == files
    assert set(Path(tempfile.gettempdir()).glob("thrifty-sandbox-*")) <= folders
