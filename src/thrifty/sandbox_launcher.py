"""The child process of `thrifty.sandbox`: it builds the walls around itself and then becomes the program.

Run as a script by ``python -I -S``, in a process without threads; it imports nothing of thrifty. The launcher stays
outside as the guard. Its child, the keeper, is the first process of a namespace of process IDs, so that its death
takes everything in there with it; the keeper's child becomes the program. Where there is no such namespace, the guard's
child becomes the program and the guard hunts down what that leaves. Each wall is tried by itself, and what stands is
reported.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
NEW_MOUNTS, NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x20000, 0x10000000, 0x20000000, 0x40000000  # clone(2)
DEATH_SIGNAL, SECCOMP, DROP_CAPABILITY, SUBREAPER, NO_NEW_PRIVILEGES = 1, 22, 24, 36, 38  # prctl(2)
BIND_ALL, PRIVATE_ALL, NO_SETUID_NO_DEVICES, DETACH = 0x5000, 0x44000, 0x6, 0x2  # mount(2), umount(2)
MOUNT_SETATTR, LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 442, 444, 445, 446  # on every architecture
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
NOBODY = 65534
REFUSED_CALLS = {
    # The audit's name of the architecture; prlimit64; then socket; shmget, semget, msgget, mq_open, add_key,
    # request_key and keyctl, whose objects outlive the program; io_uring_setup, which has calls of its own.
    "x86_64": (0xC000003E, 302, (41, 29, 64, 68, 240, 248, 249, 250, 425)),
    "aarch64": (0xC00000B7, 261, (198, 194, 190, 186, 180, 217, 218, 219, 425)),
}


class Walls:
    """The protections that do not hold, each with what stood in the way."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.own_users = False

    def build(self, name: str, build: Callable[..., object], *arguments: Any) -> bool:
        """Return whether a wall stands; a second way to build it mends what the first could not."""
        try:
            build(*arguments)
        except OSError as error:
            reason = error.strerror or str(error)
            self.missing[name] = f"{self.missing[name]}; {reason}" if name in self.missing else reason
            return False
        self.missing.pop(name, None)
        return True


def call(name: str, *arguments: bytes | int | None) -> int:
    """Call a function of the C library; raise OSError where it returns -1."""
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = getattr(LIBC, name)(*words)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def own_users_and_processes(walls: Walls) -> None:
    """Without privilege, gain it over namespaces yet to be made, and over nothing else; then make one of processes."""
    user, group = os.geteuid(), os.getegid()
    call("unshare", NEW_USERS)
    walls.own_users = True
    for name, text in (  # never user 0 inside: the program would keep the privilege
        ("setgroups", "deny"),
        ("uid_map", f"{user or NOBODY} {user} 1"),
        ("gid_map", f"{group or NOBODY} {group} 1"),
    ):
        Path("/proc/self", name).write_text(text)
    call("unshare", NEW_PROCESSES)


def own_files(box: str, visible: list[str], program: bytes, size: int) -> None:
    """Move to a file system in memory that shows libraries and Python, all read-only, and has a /tmp to write in."""
    call("unshare", NEW_MOUNTS)
    call("mount", None, b"/", None, PRIVATE_ALL, None)
    options = f"mode=755,nr_inodes=16384,size={size + len(program)}".encode()
    call("mount", b"tmpfs", box.encode(), b"tmpfs", NO_SETUID_NO_DEVICES, options)
    read_only_no_setuid = struct.pack("QQQQ", 0x3, 0, 0, 0)
    for source in map(Path, [*visible, *DEVICES]):
        target = Path(box, *source.parts[1:])
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.exists():
            target.mkdir(exist_ok=True) if source.is_dir() else target.touch()
            call("mount", bytes(source), bytes(target), None, BIND_ALL, None)
            call("syscall", MOUNT_SETATTR, -100, bytes(target), 0x8000, read_only_no_setuid, len(read_only_no_setuid))
    Path(box, "program.py").write_bytes(program)
    for name in ("tmp", "dev/shm"):
        Path(box, name).mkdir(exist_ok=True)
        Path(box, name).chmod(0o1777)
    os.chdir(box)
    call("pivot_root", b".", b".")
    call("umount2", b".", DETACH)
    os.chdir("/tmp")


def landlock(folder: str, visible: list[str]) -> None:
    """Give up all files but some to read and a folder to write in; from Linux 6.12 on also signals to others."""
    version = call("syscall", LANDLOCK_CREATE, None, 0, 1)
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    attributes = struct.pack("QQQ", everything, 0, 0x3)[: 24 if version >= 6 else 8]
    rules = call("syscall", LANDLOCK_CREATE, attributes, len(attributes), 0)
    for path in filter(Path.exists, map(Path, (folder, *visible, *DEVICES))):
        some = 0x6 if str(path) in DEVICES else 0xD if path.is_dir() else 0x5  # write a device, read a folder, a file
        rights = everything if path == Path(folder) else some
        file = os.open(path, os.O_PATH)
        call("syscall", LANDLOCK_ADD, rules, 1, struct.pack("=Qi", rights, file), 0)
        os.close(file)
    call("syscall", LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def refuse_calls() -> None:
    """Have the kernel refuse to open sockets and whatever outlives a process, and limits for other processes."""
    machine = os.uname().machine
    if machine not in REFUSED_CALLS:
        raise OSError(0, f"no system call numbers for {machine}")
    architecture, prlimit, refused = REFUSED_CALLS[machine]
    load, equal, greater, answer = 0x20, 0x15, 0x35, 0x06
    refuse, allow, kill = 0x50000 | 13, 0x7FFF0000, 0x80000000
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, 0)]
    steps += [(greater, 0, 1, 0x40000000), (answer, 0, 0, refuse)]  # x86_64 has every call a second time up there
    for number in refused:
        steps += [(equal, 0, 1, number), (answer, 0, 0, refuse)]
    steps += [(equal, 0, 3, prlimit), (load, 0, 0, 16), (equal, 1, 0, 0), (answer, 0, 0, refuse), (answer, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    call("prctl", SECCOMP, 2, struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)), 0, 0)


def spare_user() -> int | None:
    """Return a user ID that nobody has, nor the one below it; None unless this is root where such are to be had."""
    last = 2_000_000_000
    first, _, length = Path("/proc/self/uid_map").read_text().split()[:3]
    return last - 2 * (os.getpid() % (1 << 22)) if (os.geteuid(), first) == (0, "0") and int(length) > last else None


def become(user: int, python: str, program: str, own: list[str]) -> None:
    """Change the user and the owner of its files, unless the new one could not run Python."""
    for path in own:
        os.chown(path, user, user)
    os.setgroups([])
    os.setresuid(user, -1, -1)  # the real one is what access() asks
    if not (os.access(python, os.X_OK) and os.access(program, os.R_OK)):
        os.setresuid(0, -1, -1)
        for path in own:
            os.chown(path, 0, -1)
        raise OSError(13, f"another user may not run {python}")
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def processes() -> dict[int, dict[str, str]]:
    """Return what the kernel tells of each process."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # ended meanwhile
            found[int(status.parent.name)] = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return found


def bound(what: int, soft: int, hard: int) -> None:
    """Lower a resource limit; one that is already lower stays."""
    most = resource.getrlimit(what)[1]
    hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(what, (min(soft, hard), hard))


def bound_processes(most: int) -> None:
    """Bound the number of processes, and see that the kernel means it: it exempts root, for one."""
    bound(resource.RLIMIT_NPROC, 0, most)
    try:
        child = os.fork()
    except BlockingIOError:
        bound(resource.RLIMIT_NPROC, most, most)
        return
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    raise OSError(1, "the kernel does not limit this user's processes")


def become_program(settings: dict[str, Any], walls: Walls, spare: int | None) -> NoReturn:
    """Build the walls that a process builds around itself, and run the program behind them."""
    folder, python, visible = settings["folder"], settings["python"], settings["visible"]
    program, box = f"{folder}/program.py", f"{folder}/box"
    own = [folder, program, box]
    others = 0  # which the limit will count besides
    if walls.own_users:
        others = 1 if "contained" in walls.missing else 2  # the guard and the keeper
    elif not spare:
        counted = (status for status in processes().values() if status["Uid"].split()[0] == str(os.getuid()))
        others = sum(int(status["Threads"]) for status in counted) - 1
    code = Path(program).read_bytes()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # before the host's own processes
    os.chdir(box)
    own_network = walls.build("network", call, "unshare", NEW_NETWORK)
    own_root = walls.build("files", own_files, box, visible, code, settings["file_bytes"])
    if own_root:
        program, own = "/program.py", []
    for capability in range(64):
        with suppress(OSError):  # there are fewer, or this process may not
            call("prctl", DROP_CAPABILITY, capability, 0, 0, 0)
    call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if not own_root:
        walls.build("files", landlock, folder, visible)
    if spare and walls.build("processes", become, spare, python, program, own):
        walls.missing.pop("contained", None)
    call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))  # where root has to stay root, it is in name only
    if not walls.build("network", refuse_calls) and own_network and own_root:
        walls.missing.pop("network")  # it has only its own, and no named sockets of others to be found
    call("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    walls.build("processes", bound_processes, others + settings["processes"])
    for name, (soft, hard) in settings["limits"].items():
        bound(getattr(resource, f"RLIMIT_{name}"), soft, hard)
    tell(settings["report"], missing=walls.missing)
    os.execve(python, [python, "-P", "-s", "-S", program], settings["environment"])


def tell(report: int, **news: object) -> None:
    """Send news to the process that started the guard, if it is still there."""
    with suppress(BrokenPipeError):
        os.write(report, json.dumps(news).encode() + b"\n")


def wait_for(child: int, report: int | None) -> None:
    """Reap whatever ends, until the child does; report how it ended."""
    while True:
        pid, status, usage = os.wait3(0)
        if pid == child:
            break
    if report is not None:
        tell(report, code=os.waitstatus_to_exitcode(status), cpu=usage.ru_utime + usage.ru_stime)


def send(number: int, pid: int) -> None:
    """Send a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def offspring() -> set[int]:
    """Return the processes below this one."""
    parents = {pid: int(status["PPid"]) for pid, status in processes().items()}
    found = [os.getpid()]
    for parent in found:
        found += [pid for pid in parents if parents[pid] == parent]
    return set(found[1:])


def hunt(spare: int | None) -> None:
    """Kill what the program left behind; orphans have become children of the guard, and of nobody else.

    A user of its own is killed at one blow, from which no fork escapes. Others are stopped first: one that is killed
    makes room for a fork bomb to grow back.
    """
    if spare:
        killer = os.fork()
        if killer == 0:
            os.setresuid(spare - 1, spare, spare - 1)  # a user whom the program cannot kill in turn
            send(signal.SIGKILL, -1)
            os._exit(0)
        os.waitpid(killer, 0)
    while True:
        stopped: set[int] = set()
        while fresh := offspring() - stopped:
            for pid in fresh:
                send(signal.SIGSTOP, pid)
            stopped |= fresh
        for pid in stopped:
            send(signal.SIGKILL, pid)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def main() -> None:
    """Be the guard."""
    settings = json.loads(sys.argv[1])
    report = settings["report"]
    os.set_inheritable(report, False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it has nobody to wait for
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until there is somebody to kill
    walls = Walls()
    alone = walls.build("contained", call, "unshare", NEW_PROCESSES)
    alone = alone or walls.build("contained", own_users_and_processes, walls)
    spare = None if walls.own_users else spare_user()
    call("prctl", SUBREAPER, 1, 0, 0, 0)
    call("prctl", DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != settings["parent"]:
        return
    child = os.fork()
    if child == 0:
        try:
            if alone:
                call("prctl", DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
                program = os.fork()
            if not alone or program == 0:
                become_program(settings, walls, spare)
            wait_for(program, report)
        except BaseException as error:
            tell(report, failed=f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: send(signal.SIGKILL, child))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    wait_for(child, None if alone else report)
    if not alone:
        hunt(spare)


if __name__ == "__main__":
    main()
