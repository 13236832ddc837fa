"""The resources that this process may use: processors, memory, file descriptors.

A container or a service manager limits a process by control groups (both versions of Linux's are read), by affinity and by
resource limits. All of them apply at once, and a group is also limited by the groups around it.
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

    # All that this process could ever have, if nothing else ran.
    total: int
    # What it can still allocate, including what the kernel would free for it, such as cached files.
    available: int


def cpus(root: Path = _ROOT) -> int:
    """The number of processors that this process may keep busy, by its affinity and its groups' quotas, at least 1.

    A quota of one and a half processors counts as 2. `root` is the folder of /proc and /sys, for tests.
    """
    allowed = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in _groups(root, "cpu"):
        allowed = min(allowed, _quota(group))
    return max(1, math.ceil(allowed))


def memory(root: Path = _ROOT) -> Memory:
    """The memory of this process: the minimum of what the machine, its groups and its limit of address space allow.

    Swap space does not count: training would be very slow in it. `root` is the folder of /proc and /sys, for tests.
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
    """The bytes of memory of this process that the system cannot reclaim: 0 if the system does not say."""
    status = _fields(root / "proc/self/status", 1 << 10)
    return status.get("RssAnon", 0) + status.get("RssShmem", 0)


def size_text(size: int) -> str:
    """A number of bytes in MiB or GiB, for people."""
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
            # Some kernels refuse the hard limit that they report. The soft one remains.
            return _descriptors(soft)
    return _descriptors(hard)


def descriptors_left() -> int:
    """The number of files that this process can still open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        opened = list(Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir())
    except OSError as error:
        if error.errno == errno.EMFILE:
            return 0
        raise
    # One of them was the listing's own.
    return max(0, _descriptors(soft) - (len(opened) - 1))


def _descriptors(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that limit this process by a controller: its own, then those around it."""
    paths = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            paths[name] = path
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        _, _, _, top, mounted, *_ = before.split(" ")
        kind, _, options = after.split(" ", 2)
        # Version 2 has one hierarchy, with an empty name.
        name = "" if kind == "cgroup2" else controller
        if kind not in {"cgroup", "cgroup2"} or (kind == "cgroup" and controller not in options.split(",")) or name not in paths:
            continue
        mount = root / _unescaped(mounted).lstrip("/")
        # In a container, the mount shows the container's group as its top, or the namespace hides the groups around it.
        inside = os.path.relpath(paths[name], _unescaped(top))
        group = mount if inside.startswith("..") else mount / inside
        while True:
            yield group
            if group == mount:
                break
            group = group.parent


def _quota(group: Path) -> float:
    """The number of processors that a group may use, which need not be whole; infinity without a quota."""
    match _words(group / "cpu.max") or [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]:
        case [quota, period] if quota not in {"max", "-1"} and int(period) > 0:
            return int(quota) / int(period)
    return math.inf


def _limit(group: Path) -> int | None:
    """The most bytes that a group may use, if there is a limit."""
    words = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
    return None if not words or words[0] == "max" else int(words[0])


def _usage(group: Path) -> int:
    """The bytes that a group uses and that cannot be reclaimed: without the cached contents of files on a disk."""
    used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes") or ["0"]
    held = _fields(group / "memory.stat", 1)
    # Version 1 counts nested groups separately, under names of their own.
    cached = sum(held.get(f"total_{name}", held.get(name, 0)) for name in ("active_file", "inactive_file"))
    return max(0, int(used[0]) - cached)


def _fields(file: Path, unit: int) -> dict[str, int]:
    """The lines of a file that are a name and a number; the number is multiplied by `unit`."""
    fields = {}
    for line in _lines(file):
        match line.replace(":", " ").split():
            case [name, number, *_] if number.isdecimal():
                fields[name] = int(number) * unit
    return fields


def _words(file: Path) -> list[str]:
    return [word for line in _lines(file)[:1] for word in line.split()]


def _lines(file: Path) -> list[str]:
    """A file's lines; none if this system has no such file, or hides it."""
    try:
        return file.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    """A path without the kernel's escapes: it writes spaces and the like as octal numbers."""
    for character in (" ", "\t", "\n", "\\"):
        path = path.replace(f"\\{ord(character):03o}", character)
    return path
