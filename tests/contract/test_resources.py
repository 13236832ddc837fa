"""What a process may use: read from invented control groups of both versions, and from this machine's own."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from thalweg.contract import resources

MIB = 1 << 20
V1 = Path("/sys/fs/cgroup/memory")
HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
38 31 0:41 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""


class Machine:
    """Invented files below /proc and /sys."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 100 kB\nMemAvailable:    4194304 kB\n")
        self.write("proc/self/status", "VmSize:\t    1024 kB\n")

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def groups(self, mounts: str, own: str) -> None:
        self.write("proc/self/mountinfo", mounts)
        self.write("proc/self/cgroup", own)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)))


def test_without_groups_the_machine_is_the_limit(machine: Machine, eight: None) -> None:
    assert resources.memory(machine.root) == (8192 * MIB, 4096 * MIB)
    assert resources.cpus(machine.root) == 8


@pytest.mark.parametrize(("quota", "cpus"), [("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("max 100000", 8)])
def test_a_quota_of_version_2_counts(machine: Machine, eight: None, quota: str, cpus: int) -> None:
    machine.groups("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/system.slice/thalweg.service\n")
    machine.write("sys/fs/cgroup/system.slice/thalweg.service/cpu.max", quota + "\n")
    assert resources.cpus(machine.root) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [("300000", 3), ("-1", 8)])
def test_a_quota_of_version_1_counts(machine: Machine, eight: None, quota: str, cpus: int) -> None:
    machine.groups(HYBRID, "4:memory:/a/b\n1:cpu,cpuacct:/a\n0::/\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", quota + "\n")
    machine.write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n")
    assert resources.cpus(machine.root) == cpus


def test_a_group_around_the_own_one_limits_too(machine: Machine, eight: None) -> None:
    machine.groups("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/outer/inner\n")
    machine.write("sys/fs/cgroup/outer/cpu.max", "100000 100000")
    machine.write("sys/fs/cgroup/outer/inner/cpu.max", "400000 100000")
    machine.write("sys/fs/cgroup/outer/memory.max", str(512 * MIB))
    machine.write("sys/fs/cgroup/outer/memory.current", str(500 * MIB))
    machine.write("sys/fs/cgroup/outer/memory.stat", f"anon {100 * MIB}\nactive_file {150 * MIB}\ninactive_file {250 * MIB}\n")
    machine.write("sys/fs/cgroup/outer/inner/memory.max", "max")
    assert resources.cpus(machine.root) == 1
    assert resources.memory(machine.root) == (512 * MIB, 412 * MIB), "what is cached of files would be given up"


def test_memory_of_version_1_counts_what_lies_in_groups_inside(machine: Machine) -> None:
    machine.groups(HYBRID, "4:memory:/a/b\n0::/\n")
    machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    machine.write("sys/fs/cgroup/memory/a/memory.limit_in_bytes", str(1024 * MIB))
    machine.write("sys/fs/cgroup/memory/a/memory.usage_in_bytes", str(900 * MIB))
    machine.write("sys/fs/cgroup/memory/a/memory.stat", f"active_file 0\ninactive_file 0\ntotal_inactive_file {300 * MIB}\n")
    assert resources.memory(machine.root) == (1024 * MIB, 424 * MIB)


@pytest.mark.parametrize("own", ["/docker/abc", "/elsewhere"])
def test_in_a_container_the_mount_is_the_own_group(machine: Machine, own: str) -> None:
    mount = "35 31 0:32 /docker/abc /sys/fs/cgroup/my\\040memory ro - cgroup cgroup rw,memory\n"
    machine.groups(mount, f"4:memory:{own}\n")
    machine.write("sys/fs/cgroup/my memory/memory.limit_in_bytes", str(64 * MIB))
    machine.write("sys/fs/cgroup/my memory/memory.usage_in_bytes", str(80 * MIB))
    assert resources.memory(machine.root) == (64 * MIB, 0), "never less than nothing"


def test_the_limit_of_address_space_counts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (5 * MIB, 5 * MIB))
    assert resources.memory(machine.root) == (5 * MIB, 4 * MIB)


def test_this_machine_has_something() -> None:
    total, available = resources.memory()
    assert 0 < available <= total
    assert 1 <= resources.cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_affinity_counts() -> None:
    one = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{one}}}); from thalweg.contract import resources; print(resources.cpus())"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "1"


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of 256 MiB."""
    folder = V1 / f"memory-eng-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(256 * MIB))
    except OSError as error:
        pytest.skip(f"no control groups of version 1 can be made here: {error}")
    yield folder
    folder.rmdir()


def test_a_real_group_counts(group: Path) -> None:
    program = (
        "import sys, os; open(sys.argv[1], 'w').write(str(os.getpid()))\n"
        "from thalweg.contract import resources\n"
        "before = resources.memory(); taken = bytearray(os.urandom(1 << 20) * 64); after = resources.memory()\n"
        "print(*before, *after)"
    )
    told = subprocess.check_output([sys.executable, "-c", program, str(group / "cgroup.procs")], text=True)
    total, before, _, after = map(int, told.split())
    assert total == 256 * MIB
    assert 48 * MIB < before - after < 128 * MIB


def test_the_descriptor_limit_is_raised_to_the_most() -> None:
    program = (
        "import os, resource; from thalweg.contract import resources as r\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard)); before = r.descriptors_left()\n"
        "files = [os.open('/dev/null', os.O_RDONLY) for _ in range(before)]\n"
        "assert r.descriptors_left() == 0, r.descriptors_left()\n"
        "assert r.raise_descriptor_limit() == hard, hard\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)\n"
        "assert r.descriptors_left() == hard - 64"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_sizes_are_for_people() -> None:
    sizes = {0: "0.00 MiB", 5 * MIB: "5.00 MiB", 102 * MIB: "102.00 MiB", 103 * MIB: "0.10 GiB", 5000 << 30: "5,000.00 GiB"}
    assert [resources.size_text(size) for size in sizes] == list(sizes.values())


def test_what_a_process_has_is_what_it_could_not_give_back(machine: Machine) -> None:
    machine.write("proc/self/status", "VmRSS: 9 kB\nRssAnon:\t    2 kB\nRssFile: 4 kB\nRssShmem: 3 kB\n")
    assert resources.resident(machine.root) == 5 << 10
    assert resources.resident(machine.root / "elsewhere") == 0
