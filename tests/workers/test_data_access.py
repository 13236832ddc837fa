"""What data uses of a node: made once by one worker while others wait, held while it is used, bounded, also on a full disk."""

import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.end_to_end.command import wait_for
from thalweg.learning.data.access import Progress
from thalweg.learning.errors import NodeError
from thalweg.workers.data_access import DataPolicy, NodeAccess

# What a worker does in a process of its own: it makes one key, and says that it did.
_WORKER = """
import sys
from pathlib import Path
from thalweg.workers.data_access import NodeAccess

def fill(path):
    with Path(sys.argv[1]).open("a") as made:
        made.write("made\\n")
    print("filling", flush=True)
    sys.stdin.readline()
    path.write_text("content")

with NodeAccess(Path) as access:
    print(access.made("key", fill).read_text(), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of this test, and no temporary folders elsewhere."""
    monkeypatch.setenv("THALWEG_DATA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield tmp_path / "cache"
    assert list((tmp_path / "temporary").iterdir()) == []


def write(path: Path) -> None:
    path.write_text("x" * 100)


def never(path: Path) -> None:
    raise AssertionError("it was there")


def test_a_file_or_a_folder_is_made_once_for_all(cache: Path) -> None:
    with NodeAccess(Path) as first, NodeAccess(Path) as second:
        made = first.made("a", write)
        assert made.read_text() == "x" * 100
        assert second.made("a", never) == made == first.made("a", never)
        assert first.made("b", Path.mkdir).is_dir()
    with NodeAccess(Path) as later:
        assert later.made("a", never) == made
    assert len(list(cache.iterdir())) == 2


def test_two_processes_make_a_key_once(tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _WORKER, str(tmp_path / "made")]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as first, start() as second:
        wait_for((tmp_path / "made").exists)
        for each in (first, second):
            assert each.stdin
            each.stdin.write("\n\n")
            each.stdin.flush()
        said = [each.communicate()[0].split() for each in (first, second)]
    assert sorted(said, key=len) == [["content"], ["filling", "content"]]
    assert (tmp_path / "made").read_text() == "made\n"


def test_others_wait_and_say_so_and_go_on_if_the_first_one_fails(cache: Path) -> None:
    waits, results = threading.Event(), []

    @contextmanager
    def doing(what: str, more: float, progress: Progress | None) -> Iterator[None]:
        assert what.startswith("waiting for another worker")
        assert progress is None
        waits.set()
        yield

    def wait_and_fail(path: Path) -> None:
        thread.start()
        assert waits.wait(60)
        raise ValueError("no data")

    def second() -> None:
        with NodeAccess(Path, doing=doing) as access:
            results.append(access.made("a", write).read_text())

    thread = threading.Thread(target=second)
    with pytest.raises(ValueError, match="no data"), NodeAccess(Path) as access:
        access.made("a", wait_and_fail)
    thread.join()
    assert results == ["x" * 100]
    assert len(list(cache.iterdir())) == 1


def test_what_is_in_use_is_not_removed_and_the_oldest_of_the_rest_is() -> None:
    policy = DataPolicy(cache_bytes=150)
    with NodeAccess(Path, policy) as used:
        held = used.made("used", write)
        with NodeAccess(Path, policy) as others:
            old, new = others.made("old", write), others.made("new", write)
        for age, path in enumerate((held, old, new)):
            os.utime(path.parent, (1000 + age, 1000 + age))
        with NodeAccess(Path, policy) as others:
            assert others.made("newest", write).exists()
            assert (held.exists(), old.exists(), new.exists()) == (True, False, True)
    with NodeAccess(Path, DataPolicy(cache_bytes=0)) as last:
        last.made("last", write)
        assert not held.exists()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounts need root")
def test_on_a_full_disk_what_nobody_uses_makes_room_then_a_temporary_folder_then_there_is_an_error(tmp_path: Path) -> None:
    program = """
    import os, sys
    from pathlib import Path
    import tempfile
    from thalweg.learning.errors import NodeError
    from thalweg.workers.data_access import NodeAccess

    def fill(path):
        path.write_bytes(bytes(3 << 20))

    with NodeAccess(Path) as access:
        access.made("a", fill)
    with NodeAccess(Path) as access:
        b = access.made("b", fill)
        print(len(os.listdir(sys.argv[1])), b.is_relative_to(sys.argv[1]))
        c = access.made("c", fill)
        print(c.is_relative_to(tempfile.gettempdir()), c.stat().st_size)
        os.environ["TMPDIR"], tempfile.tempdir = sys.argv[1], None
        try:
            access.made("d", fill)
        except NodeError as error:
            print(error)
    """
    folder, mounted = tmp_path / "small", 'mount -t tmpfs -o size=5m,mode=700 none "$1" && exec "$2" -c "$3" "$1"'
    folder.mkdir()
    command = ["unshare", "-m", "sh", "-c", mounted, "sh", str(folder), sys.executable, textwrap.dedent(program)]
    environment = os.environ | {"THALWEG_DATA_CACHE": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second, third = done.stdout.splitlines()
    assert (first, second) == ("1 True", f"True {3 << 20}")
    assert third.startswith("what is made from the data cannot be kept on this node: [Errno 28] No space left on device")
    assert third.endswith("free some space, or name another folder in THALWEG_DATA_CACHE")


def test_a_cache_that_others_can_write_is_not_used(cache: Path, tmp_path: Path) -> None:
    cache.mkdir()
    cache.chmod(0o777)
    with NodeAccess(Path) as access:
        assert access.made("a", write).is_relative_to(tmp_path / "temporary")


def test_what_the_system_refuses_is_an_error_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def refused(path: Path) -> None:
        raise OSError("input/output error")

    with pytest.raises(NodeError, match="input/output error"), NodeAccess(Path) as access:
        access.made("a", refused)
