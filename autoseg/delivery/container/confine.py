"""The first process in a container's namespaces: mounts, limits, the other user; then the container's own command.

Started by `unshare` as a script, with a JSON file that says what to do. It knows nothing of the rest of the package. It
stays process 1, as the runner of a platform does, passes SIGTERM on, and ends with the exit code of the command.
"""

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from typing import Any

BIND, RECURSIVE, REMOUNT, READ_ONLY = 4096, 16384, 32, 1
KEPT = {os.ST_NOSUID: 2, os.ST_NODEV: 4, os.ST_NOEXEC: 8, os.ST_NOATIME: 1024, os.ST_RELATIME: 1 << 21}
"""Flags that a mount in a user namespace may not lose."""
DEVICES = ("null", "zero", "full", "random", "urandom")
SET_FLAGS, UP = 0x8914, 0x41
NO_NEW_PRIVILEGES, DROP_CAPABILITY = 38, 24
LAST_CAPABILITY = 63
LIBC = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    words = [None if word is None else word.encode() for word in (source, target, kind)]
    if LIBC.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"mount {source} on {target}: {os.strerror(code)}")


def bind(source: str, target: str, read_only: bool) -> None:
    mount(source, target, flags=BIND | RECURSIVE)
    if read_only:
        held = os.statvfs(target).f_flag
        kept = sum(flag for bit, flag in KEPT.items() if held & bit)
        mount(source, target, flags=BIND | REMOUNT | READ_ONLY | kept)


def furnish(told: dict[str, Any]) -> None:
    """Everything that the container sees besides its own files."""
    root = told["root"]
    for source, target, read_only in told["binds"]:
        bind(source, root + target, read_only)
    mount("shm", root + "/dev/shm", "tmpfs", data=f"size={told['shm_bytes']},mode=1777")
    for name in DEVICES:
        bind(f"/dev/{name}", f"{root}/dev/{name}", False)
    mount("proc", root + "/proc", "proc")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:  # the loopback device is down in a new namespace
        fcntl.ioctl(link, SET_FLAGS, struct.pack("16sH14x", b"lo", UP))


def become(told: dict[str, Any]) -> None:
    """The container's command in place of this process."""
    for file in told["cgroups"]:
        with open(file, "w") as group:
            group.write("0")
    if told["data_bytes"]:
        resource.setrlimit(resource.RLIMIT_DATA, (told["data_bytes"],) * 2)
    os.chroot(told["root"])
    os.chdir(told["workdir"])
    if told["user"]:
        for capability in range(LAST_CAPABILITY + 1):
            LIBC.prctl(DROP_CAPABILITY, capability, 0, 0, 0)
        user, group = told["user"]
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    LIBC.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    os.umask(0o022)
    words = told["command"]
    os.execvpe(words[0], words, told["env"])


def main(path: str) -> int:
    with open(path) as file:
        told = json.load(file)
    furnish(told)
    child = os.fork()
    if child == 0:
        try:
            become(told)
        except OSError as error:
            sys.stderr.write(f"{told['command'][:1]} could not be started: {error}\n")
            os._exit(127)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        with suppress(InterruptedError):
            done, status = os.wait()
            if done == child:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
