"""Archives of code: unpacked as they are, or refused, whatever a stranger put into them; nothing of them is run."""

import io
import os
import pickle
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.workers.archives import link, sha256_of, zipped
from thalweg.contract.code import MAX_FILES
from thalweg.contract.resources import size_text
from thalweg.learning.errors import MistakeError
from thalweg.workers import archive as archives
from thalweg.workers.archive import Archive

GOOD: dict[str, bytes | str] = {"nets.py": "width = 3\n", "package/deep/blocks.py": "depth = 2\n", "package/data.bin": b"\0\1"}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._mark}",)


def unpacked(content: bytes, tmp_path: Path, sha256: str = "", max_bytes: int = 1 << 20) -> dict[str, bytes]:
    """What lies in the folder afterwards, by its path."""
    (tmp_path / "archive").write_bytes(content)
    folder = tmp_path / "cache" / "folder"
    folder.mkdir(parents=True)
    with (tmp_path / "archive").open("rb") as file:
        Archive(file, sha256 or sha256_of(content), "code.path", max_bytes).unpack(folder)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if not path.is_dir()}


def refusal(content: bytes, tmp_path: Path, sha256: str = "", max_bytes: int = 1 << 20) -> str:
    """Why an archive is refused. Whatever it holds, nothing appears outside of the folder."""
    with pytest.raises(MistakeError) as caught:
        unpacked(content, tmp_path, sha256, max_bytes)
    outside = {path.name for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "cache" / "folder")}
    assert outside == {"archive", "cache"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    start = "code.path: the archive of the job's code "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_files_are_as_they_were_and_for_reading_only(tmp_path: Path, method: int) -> None:
    found = unpacked(zipped(GOOD, compress_type=method), tmp_path)
    assert found == {name: content.encode() if isinstance(content, str) else content for name, content in GOOD.items()}
    folder = tmp_path / "cache" / "folder"
    assert {stat.S_IMODE(path.stat().st_mode) & 0o222 for path in [folder, *folder.rglob("*")]} == {0}


def test_entries_of_folders_are_allowed(tmp_path: Path) -> None:
    assert list(unpacked(zipped({"a/": b"", "a/b.py": b""}), tmp_path)) == ["a/b.py"]


NAMES = [
    "../evil.py",
    "a/../../evil.py",
    "/tmp/evil.py",
    "..",
    "a/..",
    ".",
    "./a.py",
    "a//b.py",
    "a\\..\\b.py",
    "a\nb.py",
    "a" * 300,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    told = refusal(zipped({"good.py": b"", name: b"evil"}), tmp_path)
    assert told.startswith("has an entry that is refused, '")
    assert told.endswith("': its name is not a relative path of plain names")


def test_a_name_that_is_cut_at_a_zero_byte_is_refused(tmp_path: Path) -> None:
    content = zipped({"nets.pyX../evil": b""}).replace(b"nets.pyX", b"nets.py\0")
    assert "its name is not a relative path" in refusal(content, tmp_path)


@pytest.mark.parametrize("target", ["/etc/passwd", "../../evil", "nets.py"])
def test_a_link_is_refused(tmp_path: Path, target: str) -> None:
    assert refusal(link("nets.py", target), tmp_path) == "has an entry that is refused, 'nets.py': it is a link or a device"


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_a_device_is_refused(tmp_path: Path, kind: int) -> None:
    told = refusal(zipped({"nets.py": b""}, external_attr=(kind | 0o666) << 16), tmp_path)
    assert told == "has an entry that is refused, 'nets.py': it is a link or a device"


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    content = zipped({"a.py": b"1", "b.py": b"2"}).replace(b"b.py", b"a.py")
    assert refusal(content, tmp_path) == "has two files of the same name"


def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    assert refusal(zipped({"a": b"", "a/b.py": b""}), tmp_path).startswith("has a file and a folder of the same name: a")


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    content = zipped({"zeros.bin": bytes(50 << 20)}, compress_type=zipfile.ZIP_DEFLATED)
    assert len(content) < 1 << 16
    assert refusal(content, tmp_path) == f"unpacks to too much: its files may have {size_text(1 << 20)} in all"
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.bin")) <= 1 << 20


def test_what_is_unpacked_counts_and_not_what_the_headers_say(tmp_path: Path) -> None:
    size, lie = struct.pack("<L", 50 << 20), struct.pack("<L", 100)
    content = zipped({"zeros.bin": bytes(50 << 20)}, compress_type=zipfile.ZIP_DEFLATED)
    assert content.count(size) == 2
    told = refusal(content.replace(size, lie), tmp_path)
    assert told.startswith(("is damaged: zeros.bin", "unpacks to too much"))
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.bin")) <= 1 << 20


def test_files_that_overlap_count_each_time(tmp_path: Path) -> None:
    """One packed file that many entries share: its bytes are counted for each of them."""
    content = zipped({f"{number:04}.bin": bytes(1 << 14) for number in range(100)}, compress_type=zipfile.ZIP_DEFLATED)
    assert "unpacks to too much" in refusal(content, tmp_path)


def test_too_many_files_are_refused(tmp_path: Path) -> None:
    content = zipped({f"{number}.py": b"" for number in range(MAX_FILES + 1)})
    assert refusal(content, tmp_path) == f"has {MAX_FILES + 1:,} files; at most {MAX_FILES:,} are allowed"


def test_a_directory_that_would_fill_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many, few = zipped({f"{number}.py": b"" for number in range(66_000)}), zipped(GOOD)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    assert "too many files" in refusal(many, tmp_path)
    monkeypatch.setattr(archives, "_MAX_DIRECTORY_BYTES", 10)
    (tmp_path / "again").mkdir()
    assert "too many files" in refusal(few, tmp_path / "again")


def test_an_archive_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ARCHIVE_BYTES", 100)
    assert refusal(zipped(GOOD), tmp_path) == f"has {size_text(len(zipped(GOOD)))}; at most {size_text(100)} are allowed"


def test_another_archive_than_was_submitted_is_refused(tmp_path: Path) -> None:
    told = refusal(zipped(GOOD), tmp_path, sha256="0" * 64)
    assert told == f"has the SHA-256 {sha256_of(zipped(GOOD))}, not {'0' * 64}; submit the job again, which uploads it again"


def test_a_pickle_is_no_archive_and_is_not_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "cache" / "folder" / "mark"
    assert refusal(pickle.dumps(Payload(mark)), tmp_path) == "is not a zip file"
    assert not mark.exists()


def test_neither_is_anything_else(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../evil.py"))
    good = zipped(GOOD)
    # The end of a zip file alone: its directory would begin before the file.
    contents = [b"", b"PK", b"width = 3\n", buffer.getvalue(), good[:-30], good[:-2] + b"\1\0x", good[-22:]]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).mkdir()
        assert refusal(content, tmp_path / str(number)) == "is not a zip file"


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    assert refusal(zipped(GOOD).replace(b"width = 3", b"width = 4"), tmp_path) == "is damaged: nets.py cannot be unpacked"


@pytest.mark.parametrize("attributes", [{"compress_type": zipfile.ZIP_BZIP2}, {"compress_type": zipfile.ZIP_LZMA}])
def test_unusual_compression_is_refused(tmp_path: Path, attributes: dict[str, int]) -> None:
    assert "packed in an unusual way" in refusal(zipped({"nets.py": b"x" * 100}, **attributes), tmp_path)


def test_what_was_unpacked_is_known_again(tmp_path: Path) -> None:
    unpacked(zipped(GOOD), tmp_path)
    folder = tmp_path / "cache" / "folder"
    with (tmp_path / "archive").open("rb") as file:
        archive = Archive(file, sha256_of(zipped(GOOD)), "code.path")
        assert archive.is_in(folder)
        assert archive.is_in(folder)
        folder.chmod(0o700)
        (folder / "more.py").touch()
        assert not archive.is_in(folder)
        (folder / "more.py").unlink()
        (folder / "nets.py").unlink()
        (folder / "nets.py").symlink_to("package/data.bin")
        assert not archive.is_in(folder)
        (folder / "nets.py").unlink()
        (folder / "nets.py").write_text("width = 4\n")
        assert not archive.is_in(folder)
