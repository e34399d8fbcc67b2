"""Runs Python programs that a model wrote, in a process that can reach and spend little.

Always held: limits on time, memory of each process, file size, open files and output; an environment and a working
folder with nothing of this process in them; no input. Held where the kernel lets it, and named in `Isolation`:

- ``files``: reads the standard library and the system's programs and libraries, writes to a folder of its own, opens
  nothing else. By mounts of its own, else by Landlock, which lets a program see that a file exists.
- ``network``: opens no socket, not even to this machine.
- ``processes``: has no more of them than it may; the kernel is put to the test before the program starts.
- ``contained``: signals no process but its own, and all that it starts is dead when `run` returns or this process dies.

Seen on Linux 6.18: all four as root and as a user who may make user namespaces. Where no namespace can be made, as in
most containers: all four as root, if other users may run this Python; as a user all but ``contained``, for a program
could try to outrun the hunt for what it leaves behind.

NOT protected against:

- holes in the kernel, side channels, and what any user may read or run under /usr and in the Python installation;
- exhaustion below the limits, which multiply, memory by ``processes`` to begin with. There is no limit on all memory
  together, nor on all files together where ``files`` is held by Landlock;
- a program that lies about itself, by printing the answer that is looked for or by ending with code 0;
- what a missing protection names: without ``contained`` it may kill what this user runs and outlive `run`, without
  ``files`` it reads and writes what this user may. Against deliberate attack use a virtual machine.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Literal

from thrifty.errors import ThriftyError

PROTECTIONS = ("files", "network", "processes", "contained")
Status = Literal["ok", "error", "crash", "timeout", "memory", "output"]

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUTF8": "1", "PYTHONHASHSEED": "0"}
"""The seed of hashes is fixed so that the same program prints its sets in the same order again."""
_START_SECONDS = 60.0  # a busy machine takes long to start a process
_END_SECONDS = 10.0
_MOST_SECONDS = 3600.0  # that the system call takes at a time
_QUIET_SECONDS = 0.2  # after the end: another process, forked off this one meanwhile, may hold the pipes open


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may spend.

    Attributes:
        seconds: wall-clock time, from the start of the program on.
        cpu_seconds: processor time of each process.
        memory: bytes of address space of each process; Python itself takes some 30 MB.
        processes: processes and threads at one time, the program itself among them.
        file_bytes: bytes of each file; where ``files`` holds by own mounts, of all files together.
        open_files: of each process.
        output: bytes on standard output and standard error together.
    """

    seconds: float = 10.0
    cpu_seconds: float = 10.0
    memory: int = 512 << 20
    processes: int = 16
    file_bytes: int = 16 << 20
    open_files: int = 64
    output: int = 1 << 20

    def __post_init__(self) -> None:
        for name, least in {"memory": 64 << 20, "file_bytes": 1 << 20, "open_files": 16}.items():
            if getattr(self, name) < least:
                raise ThriftyError(f"sandbox: {name} must be at least {least}: Python does not start with less")
        for name in ("seconds", "cpu_seconds", "processes", "output"):
            if not 0 < getattr(self, name) < math.inf:
                raise ThriftyError(f"sandbox: {name} must be positive and finite, not {getattr(self, name)}")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class Isolation:
    """Which of `PROTECTIONS` hold.

    Attributes:
        missing: those that do not, each with what stood in the way.
    """

    missing: dict[str, str]

    @property
    def held(self) -> tuple[str, ...]:
        return tuple(name for name in PROTECTIONS if name not in self.missing)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a program did.

    Attributes:
        stdout, stderr: what it wrote, bytes that are no UTF-8 replaced; both end where the limit on output was reached.
        status: "ok" for exit code 0, "error" for another, "crash" for death by a signal; "timeout" (either clock),
            "output" and "memory" for a limit. Memory is told by Python's last line, a MemoryError.
        code: exit code, or minus the signal; None where the sandbox ended the program.
        seconds: wall-clock time of the program.
        isolation: what protected the machine in this run.
    """

    stdout: str
    stderr: str
    status: Status
    code: int | None
    seconds: float
    isolation: Isolation

    @property
    def protections(self) -> tuple[str, ...]:
        return self.isolation.held

    @property
    def network_isolated(self) -> bool:
        return "network" in self.isolation.held


def run(code: str, limits: Limits = DEFAULT_LIMITS) -> Result:
    """Run a Python program with this version of Python and the standard library; threads may do so at once.

    Args:
        code: the source text.
        limits: what it may spend.

    Returns:
        What it did; nothing that it does raises an exception here.

    Raises:
        ThriftyError: this is not Linux, or no process can be started.
    """
    if sys.platform != "linux":
        raise ThriftyError("the sandbox needs Linux: run thrifty in a Linux container or virtual machine")
    folder = tempfile.mkdtemp(prefix="thrifty-sandbox-")
    try:
        Path(folder, "box").mkdir()
        # a lone surrogate is then a syntax error of the program, not a mistake of the caller
        Path(folder, "program.py").write_bytes(code.encode("utf-8", "surrogatepass"))
        return _run(folder, limits)
    except OSError as error:
        raise ThriftyError(f"the sandbox cannot start a process: {error}") from error
    finally:
        _remove(folder)


@cache
def isolation() -> Isolation:
    """Return which protections hold on this machine, as one run of an empty program finds."""
    return run("").isolation


def _run(folder: str, limits: Limits) -> Result:
    python = os.path.realpath(sys.executable)
    cpu = math.ceil(limits.cpu_seconds)
    reader, writer = os.pipe()
    settings = {
        "folder": folder,
        "python": python,
        "visible": _visible(python),
        "environment": _ENVIRONMENT,
        "parent": os.getpid(),
        "report": writer,
        "processes": limits.processes,
        "file_bytes": limits.file_bytes,
        "limits": {
            "CPU": (cpu, cpu + 1),  # a program may ignore the first signal, not the second
            "AS": (limits.memory, limits.memory),
            "FSIZE": (limits.file_bytes, limits.file_bytes),
            "NOFILE": (limits.open_files, limits.open_files),
            "CORE": (0, 0),
        },
    }
    with os.fdopen(reader, "rb") as report:
        try:
            guard = subprocess.Popen(
                [python, "-I", "-S", str(Path(__file__).with_name("sandbox_launcher.py")), json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env={},
                start_new_session=True,
                pass_fds=[writer],
            )
        finally:
            os.close(writer)
        assert guard.stdout is not None  # they are pipes
        assert guard.stderr is not None
        with guard.stdout, guard.stderr:
            try:
                seen = _follow({"stdout": guard.stdout, "stderr": guard.stderr, "report": report}, limits)
            finally:
                _end(guard)
    stdout, stderr, lines = (seen.texts[name].decode("utf-8", "replace") for name in ("stdout", "stderr", "report"))
    told = {key: value for line in lines.splitlines() for key, value in json.loads(line).items()}
    if "missing" not in told or "failed" in told:
        raise ThriftyError(f"the sandbox did not start: {told.get('failed') or stderr[-500:] or 'no reply'}")
    code = told.get("code") if seen.limit is None else None
    return Result(
        stdout=stdout,
        stderr=stderr,
        status=seen.limit or _status(code, stderr, told.get("cpu", 0.0) > cpu),
        code=code,
        seconds=seen.seconds,
        isolation=Isolation(told["missing"]),
    )


def _status(code: int | None, stderr: str, spent: bool) -> Status:
    if code == 0:
        return "ok"
    if code is None or code < 0:
        return "timeout" if code == -signal.SIGXCPU or (code == -signal.SIGKILL and spent) else "crash"
    last = stderr.rstrip().rpartition("\n")[2]
    return "memory" if last.startswith("MemoryError") else "error"


def _visible(python: str) -> list[str]:
    """Return what a program may read: the system, and this Python where it lies elsewhere."""
    visible = list(_SYSTEM)
    for path in map(os.path.realpath, (sys.base_prefix, sys.base_exec_prefix, python)):
        if path != "/" and not any(Path(path).is_relative_to(seen) for seen in visible):
            visible.append(path)
    return visible


@dataclass
class _Seen:
    texts: dict[str, bytearray]
    limit: Literal["timeout", "output"] | None = None
    seconds: float = 0.0


def _follow(streams: dict[str, IO[bytes]], limits: Limits) -> _Seen:
    """Read what the program writes and the guard reports, until the program ends or reaches a limit."""
    seen = _Seen({name: bytearray() for name in streams})
    now = time.monotonic()
    started = ended = 0.0
    deadline = now + _START_SECONDS
    with selectors.DefaultSelector() as selector:
        for name, stream in streams.items():
            selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map() and seen.limit is None:
            if now >= deadline:
                seen.limit = None if ended else "timeout"
                break
            ready = selector.select(min(deadline - now, _QUIET_SECONDS if ended else _MOST_SECONDS))
            if ended and not ready:
                break
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                seen.texts[key.data] += data
                if not data:
                    selector.unregister(key.fileobj)
                if key.data == "report":
                    now = time.monotonic()
                    started = started or now
                    ended = now if not data or seen.texts["report"].count(b"\n") > 1 else 0.0
                    deadline = ended + _END_SECONDS if ended else started + limits.seconds
                elif (excess := len(seen.texts["stdout"]) + len(seen.texts["stderr"]) - limits.output) > 0:
                    del seen.texts[key.data][-excess:]
                    seen.limit = "output"
            now = time.monotonic()
    seen.seconds = (ended or now) - (started or now)
    return seen


def _end(guard: subprocess.Popen[bytes]) -> None:
    """Have the guard kill what is left of the program, and wait until it has."""
    guard.terminate()
    try:
        guard.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:  # a program that is not contained can stop its guard
        os.killpg(guard.pid, signal.SIGKILL)
        guard.wait()


def _remove(folder: str) -> None:
    try:
        for path in (Path(folder, "box"), Path(folder, "program.py"), Path(folder)):
            path.rmdir() if path.is_dir() else path.unlink()
    except OSError:  # without own mounts the program wrote here, perhaps deeper than shutil can climb
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, folder], stderr=subprocess.DEVNULL, check=False)
