"""Attacks on the walls of the sandbox, on this machine and on the poorer ones that it can be made into.

Each claim is tested both ways: where a protection is reported the attack fails; where it is not, the Result says so
and, if it does no harm, the attack is seen to succeed.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_worlds import UNSHARE, WORLDS, isolation_in, run_in, running
from thrifty.sandbox import PROTECTIONS, Limits, isolation, run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux, and so does its test")
worlds = pytest.mark.parametrize("world", WORLDS)


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


@worlds
def test_ordinary_program_in_every_world(world: str) -> None:
    result = run_in(
        world,
        "import os, sys, tempfile, subprocess, threading\n"
        "assert os.listdir('.') == []\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "subprocess.run(['true'], check=True)\n"
        "print(os.urandom(0), open(os.devnull).read(), sys.version_info[:2] == " + f"{sys.version_info[:2]})\n"
        "thread = threading.Thread(target=print, args=('thread',)); thread.start(); thread.join()\n"
        "open('file', 'w').write('kept'); print(open('file').read())\n",
    )
    assert result.stdout == "b''  True\nthread\nkept\n", result.stderr
    assert result.status == "ok"


@worlds
def test_result_tells_what_protects(world: str) -> None:
    found = isolation_in(world)
    assert set(found.held) | set(found.missing) == set(PROTECTIONS)
    assert not set(found.held) & set(found.missing)
    assert all(found.missing.values())
    if "bare" in world:
        assert {"files", "network"} <= set(found.missing)
        assert "Operation not permitted" in found.missing["files"]
    if world == "bare user":
        assert "contained" in found.missing


def test_isolation_is_that_of_every_run() -> None:
    result = run("")
    assert result.isolation == isolation()
    assert result.protections == isolation().held
    assert result.network_isolated == ("network" in isolation().held)


@worlds
def test_files(world: str, secrets: tuple[Path, Path]) -> None:
    home, shared = secrets
    result = run_in(
        world,
        f"""
home, shared = {str(home)!r}, {str(shared)!r}
for path, mode in [(home, 'r'), ('/..' + shared, 'r'), (shared, 'r'), (shared, 'a')]:
    try:
        with open(path, mode) as file:
            print(mode, file.read() if mode == 'r' else file.write('!'))
    except OSError as error:
        print(mode, 'refused')
""",
    )
    if "files" in isolation_in(world).held:
        assert result.stdout == "r refused\n" * 3 + "a refused\n"
        assert shared.read_text() == "secret"
    else:
        assert "files" in result.isolation.missing
        assert "r secret\na 1\n" in result.stdout  # so it is right not to claim it


@worlds
def test_python_and_system_are_read_only(world: str) -> None:
    if "files" not in isolation_in(world).held:  # this would really write
        assert isolation_in(world).missing["files"]
        return
    code = f"""
import os
for folder in ({os.path.realpath(sys.base_prefix)!r}, '/usr/lib', '/usr/bin', os.path.dirname(os.__file__)):
    try: open(folder + '/thrifty-was-here', 'w'); print('written')
    except OSError: print('refused')
    if os.getcwd() == '/tmp':  # mounts of its own, which do not leave it to the owner of the files
        assert os.statvfs(folder).f_flag & os.ST_RDONLY and os.statvfs(folder).f_flag & os.ST_NOSUID
"""
    result = run_in(world, code)
    assert result.stdout == "refused\n" * 4, result.stderr


@worlds
def test_network(world: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
            for listener, address in ((named, f"{folder}/socket"), (abstract, f"\0{uuid.uuid4().hex}")):
                listener.bind(address)
                listener.listen()
            Path(folder, "socket").chmod(0o777)
            result = run_in(
                world,
                f"""
import socket
for family, address in [(socket.AF_INET, {server.getsockname()!r}), (socket.AF_UNIX, {named.getsockname()!r}),
                        (socket.AF_UNIX, {abstract.getsockname()!r})]:
    try: socket.socket(family).connect(address); print('connected')
    except OSError: print('refused')
""",
            )
    held = "network" in isolation_in(world).held
    assert result.network_isolated == held
    assert result.stdout == ("refused\n" if held else "connected\n") * 3


@worlds
def test_reaching_other_processes(world: str) -> None:
    result = run_in(world, "import os\ntry: os.kill(WORLD, 0); print('reached')\nexcept OSError: print('refused')")
    if "contained" in isolation_in(world).held:
        assert result.stdout == "refused\n"
    elif "bare" in world:  # elsewhere Landlock may refuse this much
        assert result.stdout == "reached\n"


@pytest.mark.parametrize("world", ["here", "user", "container", "container user"])
def test_guard_cannot_be_harmed(world: str) -> None:
    result = run_in(
        world,
        """
import os, resource
for attack in (lambda: os.kill(os.getppid(), 9), lambda: os.kill(os.getppid(), 19),
               lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))):
    try: attack()
    except OSError: pass
try: open(f'/proc/{os.getppid()}/mem', 'r+b'); print('opened')
except OSError: print('refused')
""",
    )
    if "contained" in isolation_in(world).held:
        assert (result.code, result.stdout) == (0, "refused\n")
    else:
        assert result.isolation.missing["contained"]


def test_killing_the_guard_where_that_can_be_done() -> None:
    result = run_in("bare user", "import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(600)")
    assert "contained" in result.isolation.missing
    assert (result.status, result.code) == ("crash", None)


@worlds
@pytest.mark.parametrize("ending", ["pass", "time.sleep(600)"], ids=["ends", "times out"])
def test_daemon(world: str, ending: str, marker: str) -> None:
    result = run_in(
        world,
        f"""
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
reader, writer = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        os.execv(sys.executable, [sys.executable, '-c', 'import os, time; os.write({{}}, b"x"); time.sleep(600)'.format(
            os.dup2(writer, 9)), {marker!r}])
    os._exit(0)
os.read(reader, 1)
print('started', flush=True)
{ending}
""",
        seconds=3 if "sleep" in ending else 60,
    )
    assert result.stdout == "started\n", result.stderr
    assert result.status == ("timeout" if "sleep" in ending else "ok")
    assert running(marker) == []


@worlds
def test_number_of_processes(world: str) -> None:
    code = """
import os, time
count = 1
try:
    while count < 100:
        if os.fork() == 0: time.sleep(600); os._exit(0)
        count += 1
except BlockingIOError: pass
print(count)
"""
    if "processes" in isolation_in(world).held:
        count = int(run_in(world, code, processes=8).stdout)
        assert count == 8 if os.geteuid() == 0 else 1 <= count <= 8  # what else a real user runs counts as well
    else:
        assert run_in(world, "").isolation.missing["processes"]


@worlds
def test_fork_bomb(world: str, marker: str) -> None:
    if "processes" in isolation_in(world).held:
        bomb = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
        code = f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', {bomb!r}, {marker!r}])"
        assert run_in(world, code, seconds=1).status == "timeout"
        assert running(marker) == []
    else:  # it would be a real one
        assert isolation_in(world).missing["processes"]


def test_new_user_namespace_does_not_lift_the_limit_on_processes() -> None:
    code = f"import ctypes, os, time\nctypes.CDLL(None).syscall({UNSHARE}, 0x10000000)\nfor count in range(1, 50):\n"
    code += " try:\n  if os.fork() == 0: time.sleep(600)\n except OSError: break\nprint(count)"
    if "processes" in isolation().held:
        assert int(run(code, Limits(processes=8)).stdout) <= 8
    else:
        assert isolation().missing["processes"]


@worlds
def test_environment_and_parents(world: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code = """
import os
for process in (os.getppid(), WORLD):
    try: print('sk-secret' in open(f'/proc/{process}/environ').read())
    except OSError: print('refused')
print(sorted(os.environ), os.path.expanduser('~') == os.environ.get('HOME'))
"""
    lines = run_in(world, code).stdout.splitlines()
    assert lines[2] == "['LANG', 'PATH', 'PYTHONHASHSEED', 'PYTHONUTF8'] False"
    if "files" in isolation_in(world).held:
        assert lines[:2] == ["refused", "refused"]
    else:
        assert "True" not in lines[0]  # the guard itself has no environment to read


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of these calls are those of x86_64")
@pytest.mark.parametrize(
    "call",
    ["29, 0, 4096, 0o1600", "64, 0, 1, 0o1600", "68, 0, 0o1600", "425, 1, bytes(120)", "(1 << 30) + 41, 2, 1, 0"],
)
def test_calls_that_outlive_a_program_or_go_around_the_filter(call: str) -> None:
    """Shared memory, semaphores, message queues, io_uring and a socket by its other number."""
    code = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.syscall({call}), ctypes.get_errno())"
    result = run(code)
    assert result.network_isolated == (result.stdout == "-1 13\n"), result


@pytest.mark.parametrize("world", ["here", "bare user"])
def test_folder_is_removed_whatever_the_program_did_to_it(world: str, secrets: tuple[Path, Path]) -> None:
    folder = secrets[1].parent / "temporary"
    folder.mkdir()
    folder.chmod(0o777)
    code = f"""
import os
os.symlink({str(secrets[1].parent)!r}, 'link')
os.mkdir('closed'); os.mkdir('closed/in'); os.chmod('closed/in', 0); os.chmod('closed', 0)
for _ in range(1100): os.mkdir('deeper'); os.chdir('deeper')
print('done')
"""
    result = run_in(world, code, temporary=folder)
    assert result.stdout == "done\n", result.stderr
    assert list(folder.iterdir()) == []
    assert secrets[1].read_text() == "secret"


def test_program_dies_with_the_process_that_asked_for_it(marker: str, tmp_path: Path) -> None:
    code = (
        f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}])"
    )
    asker = subprocess.Popen(
        [sys.executable, "-c", f"from thrifty.sandbox import *; run({code!r}, Limits(seconds=600))"],
        env=os.environ | {"TMPDIR": str(tmp_path)},  # nobody is left to remove the folder
    )
    try:
        while len(running(marker)) < 2:  # its own command line has the marker as well
            assert asker.poll() is None
            time.sleep(0.05)
    finally:
        asker.kill()
        asker.wait()
    end = time.monotonic() + 60
    while running(marker) and time.monotonic() < end:
        time.sleep(0.05)
    assert running(marker) == []
