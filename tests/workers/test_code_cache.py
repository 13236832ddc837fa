"""The folders that the code of jobs lies in: whole or not there, shared, held while used, and not too many."""

import fcntl
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from thalweg.workers import code_cache
from thalweg.workers.code_cache import cache_folder, kept


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The cache of this test, and no temporary folders elsewhere."""
    monkeypatch.setenv("THALWEG_CODE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield tmp_path / "cache"
    assert list((tmp_path / "temporary").iterdir()) == []


def fill(folder: Path) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "nets.py").write_text("width = 3\n")
    (folder / "package").chmod(0o555)
    folder.chmod(0o555)


def is_whole(folder: Path) -> bool:
    return (folder / "package" / "nets.py").exists()


def never(folder: Path) -> None:
    raise AssertionError("it was there")


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_the_cache_is_where_the_standard_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("THALWEG_CODE_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/somebody/.cache/thalweg/code")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/thalweg/code")


def test_a_folder_is_filled_once(cache: Path) -> None:
    with kept("a", fill, is_whole) as folder:
        assert folder == cache / "a"
        assert is_whole(folder)
    with kept("a", never, is_whole) as again:
        assert again == folder
    assert names(cache) == ["a"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_folder_that_somebody_changed_is_filled_again(cache: Path) -> None:
    with kept("a", fill, is_whole) as folder:
        (folder / "package").chmod(0o700)
        (folder / "package" / "nets.py").unlink()
        with kept("a", fill, is_whole) as again:
            assert is_whole(again)
    with kept("b", fill, is_whole):
        pass
    # What it was replaced with stays; what was moved aside is gone as soon as nobody uses it.
    assert names(cache) == ["a", "b"]


def test_many_at_once_fill_it_whole(cache: Path) -> None:
    gate, found = threading.Barrier(8), []

    def slowly(folder: Path) -> None:
        gate.wait()
        fill(folder)

    def use() -> None:
        with kept("a", slowly, is_whole) as folder:
            found.append((folder, is_whole(folder)))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(cache / "a", True)] * 8
    assert names(cache) == ["a"]


def test_where_filling_fails_nothing_is_left(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ValueError("no zip")

    with pytest.raises(ValueError, match="no zip"), kept("a", fail, is_whole):
        pass
    assert names(cache) == []


def test_what_a_killed_worker_left_is_removed(cache: Path) -> None:
    program = (
        "import os, sys, pathlib\n"
        "from thalweg.workers.code_cache import kept\n"
        "def fill(folder):\n"
        "    (folder / 'half').touch()\n"
        "    os._exit(9)\n"
        "with kept('a', fill, lambda folder: False): pass\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    (left,) = names(cache)
    assert left.startswith(".aside-")
    with kept("a", fill, is_whole):
        assert names(cache) == ["a"]


def test_the_oldest_that_nobody_uses_are_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_cache, "MAX_KEPT_FOLDERS", 2)
    with kept("used", fill, is_whole):
        for age, name in enumerate("abcd"):
            with kept(name, fill, is_whole):
                pass
            os.utime(cache / name, (1000 + age, 1000 + age))
        with kept("b", never, is_whole):
            pass
        with kept("e", fill, is_whole):
            assert names(cache) == ["b", "d", "e", "used"]
    monkeypatch.setattr(code_cache, "MAX_KEPT_BYTES", 0)
    with kept("e", never, is_whole):
        assert names(cache) == ["e"]


def test_a_folder_in_use_by_another_process_is_not_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kept("a", fill, is_whole):
        pass
    descriptor = os.open(cache / "a", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    monkeypatch.setattr(code_cache, "MAX_KEPT_FOLDERS", 0)
    with kept("b", fill, is_whole):
        assert names(cache) == ["a", "b"]
    os.close(descriptor)
    with kept("b", never, is_whole):
        assert names(cache) == ["b"]


@pytest.mark.parametrize("reason", ["no home", "others may write", "a link", "a file"])
def test_without_a_cache_the_folder_is_temporary(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "no home":
        monkeypatch.delenv("THALWEG_CODE_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    elif reason == "others may write":
        cache.mkdir()
        cache.chmod(0o777)
    elif reason == "a link":
        (tmp_path / "elsewhere").mkdir()
        cache.symlink_to(tmp_path / "elsewhere")
    else:
        cache.touch()
    with kept("a", fill, is_whole) as folder:
        assert folder.parent == tmp_path / "temporary"
        assert is_whole(folder)
    assert not folder.exists()


def test_a_link_in_the_cache_is_not_followed(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "evil" / "package").mkdir(parents=True)
    (tmp_path / "evil" / "package" / "nets.py").touch()
    cache.mkdir(mode=0o700)
    (cache / "a").symlink_to(tmp_path / "evil")
    with kept("a", fill, is_whole) as folder:
        assert folder.parent == tmp_path / "temporary"
