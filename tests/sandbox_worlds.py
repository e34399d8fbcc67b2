"""Poorer machines to test the sandbox on: processes in which the kernel refuses what such a machine would not have.

Run as a script it reads a job, becomes such a process, runs a program in the sandbox and prints the Result.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path

from thrifty.sandbox import Isolation, Limits, Result, run

STRANGER = 54321
UNSHARE, PRCTL, LANDLOCK = {"x86_64": (272, 157, 444), "aarch64": (97, 167, 444)}.get(platform.machine(), (0, 0, 0))
WORLDS = {
    "here": ((), False),
    "user": ((), True),
    "container": ((UNSHARE,), False),  # what Docker's filter leaves
    "container user": ((UNSHARE,), True),
    "bare": ((UNSHARE, LANDLOCK, PRCTL), False),
    "bare user": ((UNSHARE, LANDLOCK, PRCTL), True),
}
"""System calls that the kernel shall refuse (of prctl only new filters), and whether to be root no longer."""


def libc(name: str, *arguments: object) -> None:
    words = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*words) == -1:
        raise OSError(ctypes.get_errno(), name)


def enter(refused: tuple[int, ...], unprivileged: bool) -> None:
    """Turn this process into one on a poorer machine, by the kernel's own means."""
    if os.geteuid() == 0:
        closed = [folder for folder in reversed(Path(sys.base_prefix).parents) if not folder.stat().st_mode & 1]
        if closed and (unprivileged or refused):  # Python is in root's home: show others that and nothing else of it
            libc("unshare", 0x20000)
            libc("mount", None, b"/", None, 0x44000, None)
            stage = tempfile.mkdtemp().encode()
            python = os.fsencode(sys.base_prefix)
            libc("mount", python, stage, None, 0x5000, None)
            libc("mount", b"tmpfs", bytes(closed[0]), b"tmpfs", 0, b"mode=755")
            Path(sys.base_prefix).mkdir(parents=True)
            libc("mount", stage, python, None, 0x2000, None)
            Path(os.fsdecode(stage)).rmdir()
    if os.geteuid() == 0 and unprivileged:
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


def run_in(world: str, code: str, temporary: Path | None = None, **limits: float) -> Result:
    """Run a program in the sandbox on another machine; `WORLD` in its text is the process that asks for it."""
    script = Path(__file__).resolve()
    job = json.dumps({"world": world, "code": code, "limits": limits})
    environment = os.environ | ({"TMPDIR": str(temporary)} if temporary else {})
    done = subprocess.run(
        [sys.executable, str(script)], input=job, capture_output=True, text=True, env=environment, cwd="/", check=False
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


if __name__ == "__main__":  # a world, see `run_in`
    job = json.loads(sys.stdin.read())
    enter(*WORLDS[job["world"]])
    print(json.dumps(asdict(run(job["code"].replace("WORLD", str(os.getpid())), Limits(**job["limits"])))))
