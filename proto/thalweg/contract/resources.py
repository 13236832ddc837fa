"""What this process may use of its machine: processors, memory, file descriptors.

A container or a service manager limits a process by control groups (both versions of Linux's are read), by affinity and by
resource limits. All of them apply at once, and a group is limited by the groups that it lies in, too.
"""

import errno
import math
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_ROOT = Path("/")
_MIB, _GIB = 1 << 20, 1 << 30


class Memory(NamedTuple):
    """Memory in bytes."""

    # As much as this process could ever have, if nothing else ran.
    total: int
    # What it can still take. What the kernel would give up for it, such as cached files, counts as available.
    available: int


def cpus(root: Path = _ROOT) -> int:
    """How many processors this process may keep busy: by its affinity and its groups' quotas, at least 1.

    A quota of one and a half processors counts as 2. `root` is where /proc and /sys lie, for tests.
    """
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in _groups(root, "cpu"):
        allowed = min(allowed, _quota(group))
    return max(1, math.ceil(allowed))


def memory(root: Path = _ROOT) -> Memory:
    """The memory of this process: the least of what the machine, its groups and its limit of address space leave it.

    Swap space does not count: training would crawl in it. `root` is where /proc and /sys lie, for tests.
    """
    machine = _fields(root / "proc/meminfo", 1 << 10)
    total = machine.get("MemTotal") or os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
    available = machine.get("MemAvailable", total)
    for group in _groups(root, "memory"):
        if (limit := _limit(group)) is not None:
            total = min(total, limit)
            available = min(available, limit - _usage(group))
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        total = min(total, address_space)
        available = min(available, address_space - _fields(root / "proc/self/status", 1 << 10).get("VmSize", 0))
    return Memory(total, max(0, min(available, total)))


def resident(root: Path = _ROOT) -> int:
    """The bytes of memory that this process has and that the system could not have back: 0 where it does not say."""
    status = _fields(root / "proc/self/status", 1 << 10)
    return status.get("RssAnon", 0) + status.get("RssShmem", 0)


def size_text(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / _GIB:,.2f} GiB" if size >= _GIB / 10 else f"{size / _MIB:,.2f} MiB"


def raise_descriptor_limit() -> int:
    """Raises the number of files that this process may have open to the most that it is allowed, and returns it.

    Only for entry points: the limit is the whole process's, and its children inherit it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            # Some kernels refuse what they themselves named as the hard limit. The soft one remains.
            return _descriptors(soft)
    return _descriptors(hard)


def descriptors_left() -> int:
    """How many more files this process can open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        opened = list(Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir())
    except OSError as error:
        if error.errno == errno.EMFILE:
            return 0
        raise
    # The listing itself had one open.
    return max(0, _descriptors(soft) - (len(opened) - 1))


def _descriptors(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that limit this process by a controller, from its own outwards."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        _, _, _, top, mounted, *_ = before.split(" ")
        kind, _, options = after.split(" ", 2)
        # Version 2 knows its only hierarchy by an empty name.
        name = "" if kind == "cgroup2" else controller
        if kind not in {"cgroup", "cgroup2"} or (kind == "cgroup" and controller not in options.split(",")) or name not in paths:
            continue
        mount = root / _unescaped(mounted).lstrip("/")
        # In a container, the mount shows the container's group as its top, or the namespace hides what lies above it.
        inside = os.path.relpath(paths[name], _unescaped(top))
        group = mount if inside.startswith("..") else mount / inside
        while True:
            yield group
            if group == mount:
                break
            group = group.parent


def _quota(group: Path) -> float:
    """The processors that a group may use, as a number that need not be whole; infinity without a quota."""
    match _words(group / "cpu.max") or [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]:
        case [quota, period] if quota not in {"max", "-1"} and int(period) > 0:
            return int(quota) / int(period)
    return math.inf


def _limit(group: Path) -> int | None:
    """The most bytes that a group may use, if there is a limit."""
    words = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
    return None if not words or words[0] == "max" else int(words[0])


def _usage(group: Path) -> int:
    """The bytes that a group uses and would not give up for more: without what it holds of files that lie on a disk."""
    used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes") or ["0"]
    held = _fields(group / "memory.stat", 1)
    # Version 1 counts the groups inside apart, under names of their own.
    cached = sum(held.get(f"total_{name}", held.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(0, int(used[0]) - cached)


def _fields(file: Path, unit: int) -> dict[str, int]:
    """A file's lines of a name and a number, the number times `unit`."""
    fields = {}
    for line in _lines(file):
        match line.replace(":", " ").split():
            case [name, number, *_] if number.isdecimal():
                fields[name] = int(number) * unit
    return fields


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file)[:1] for word in line.split()]


def _lines(file: Path) -> list[str]:
    """A file's lines; none where this system has no such file, or hides it."""
    try:
        return file.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    """A path as the kernel meant it: it writes spaces and the like as octal numbers."""
    for character in (" ", "\t", "\n", "\\"):
        path = path.replace(f"\\{ord(character):03o}", character)
    return path
