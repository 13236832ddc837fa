"""Code as an archive: the same bytes for the same code, without what is not wanted, or a clear word about why not."""

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from thalweg.client import packing
from thalweg.client.packing import check_code, pack
from thalweg.contract.errors import ThalwegError
from thalweg.contract.resources import size_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of code."""
    folder = tmp_path / "code"
    (folder / "package").mkdir(parents=True)
    (folder / "nets.py").write_text("width = 3\n")
    (folder / "package" / "blocks.py").write_text("depth = 2\n")
    (folder / "package" / "table.csv").write_text("1,2\n")
    return folder


def packed(path: Path) -> dict[str, bytes]:
    """The files of the archive of a path, in their order in it."""
    out = path.parent / "out"
    out.mkdir(exist_ok=True)
    with zipfile.ZipFile(pack(path, out)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def refusal(path: Path, act: Callable[[Path], object] = packed) -> str:
    with pytest.raises(ThalwegError) as caught:
        act(path)
    assert caught.value.violations[0].field == "code.path"
    return caught.value.violations[0].problem


def check(path: Path) -> None:
    check_code(path, "code.path")


def test_a_folder_has_its_files_by_their_names(folder: Path) -> None:
    assert packed(folder) == {"nets.py": b"width = 3\n", "package/blocks.py": b"depth = 2\n", "package/table.csv": b"1,2\n"}
    assert list(packed(folder)) == sorted(packed(folder))


def test_a_file_lies_at_the_root(folder: Path) -> None:
    assert packed(folder / "package" / "blocks.py") == {"blocks.py": b"depth = 2\n"}


def test_a_wheel_is_used_as_it_is(folder: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "nets-1.0-py3-none-any.whl"
    pack(folder, tmp_path).rename(wheel)
    check(wheel)
    assert pack(wheel, tmp_path) == wheel
    wheel.write_text("no zip")
    assert refusal(wheel) == f"{wheel} is not a wheel: it is not a zip file"


def test_the_bytes_depend_on_names_and_contents_alone(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    one = pack(folder, first).read_bytes()
    other = tmp_path / "other"
    # Another order in the folder, other dates and modes.
    for name in ("package/table.csv", "package/blocks.py", "nets.py"):
        (other / name).parent.mkdir(exist_ok=True, parents=True)
        (other / name).write_bytes((folder / name).read_bytes())
        (other / name).chmod(0o700)
        os.utime(other / name, (10**9, 10**9))
    assert pack(other, second).read_bytes() == one
    (other / "nets.py").write_text("width = 4\n")
    assert pack(other, second).read_bytes() != one


def test_the_bytes_are_these(folder: Path, tmp_path: Path) -> None:
    """On any machine, with any release of Python: what was uploaded once is found again."""
    digest = hashlib.sha256(pack(folder, tmp_path).read_bytes()).hexdigest()
    assert digest == "6484b28e8471236832c021a130e234b206118fd626fcbbcde3a0382c62685287"


def test_what_is_no_code_is_left_out(folder: Path) -> None:
    before = packed(folder)
    for name in ("__pycache__/nets.cpython-311.pyc", ".git/config", "package/old.pyc", "venv/pyvenv.cfg", "venv/lib/six.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    assert packed(folder) == before


def test_what_gitignore_leaves_out_is_left_out(folder: Path) -> None:
    (folder / ".gitignore").write_text("*.bin\n/data/\n!kept.bin\n# a comment\n")
    (folder / "package" / ".gitignore").write_text("*.csv\n!weights.bin\n")
    for name in ("a.bin", "kept.bin", "package/weights.bin", "package/data/a.py", "data/a.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    names = {
        ".gitignore",
        "kept.bin",
        "nets.py",
        "package/.gitignore",
        "package/blocks.py",
        "package/data/a.py",
        "package/weights.bin",
    }
    assert packed(folder).keys() == names


def test_so_is_what_the_repository_leaves_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("/code/package\n")
    assert len(packed(folder)) == 3
    (tmp_path / ".git").mkdir()
    assert packed(folder).keys() == {"nets.py"}


def test_a_link_within_the_folder_is_the_file_that_it_leads_to(folder: Path) -> None:
    (folder / "again.py").symlink_to("nets.py")
    assert packed(folder)["again.py"] == b"width = 3\n"


def test_links_that_lead_elsewhere_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("secret")
    for target, problem in [
        (tmp_path / "secret.py", "is a link that leads out of the folder; exclude it by .gitignore, or put a copy in its place"),
        (Path("../secret.py"), "is a link that leads out of the folder; exclude it by .gitignore, or put a copy in its place"),
        (Path("package"), "is a link to a folder; exclude it by .gitignore, or put a copy in its place"),
        (Path(), "is a link to a folder; exclude it by .gitignore, or put a copy in its place"),
        (Path("nowhere.py"), "is a link to a file that does not exist; exclude it by .gitignore"),
        (Path("link.py"), "is a link to a file that does not exist; exclude it by .gitignore"),
    ]:
        (folder / "link.py").symlink_to(target)
        assert refusal(folder) == f"{folder / 'link.py'} {problem}"
        (folder / "link.py").unlink()
    (folder / "link.py").symlink_to(tmp_path / "secret.py")
    (folder / ".gitignore").write_text("link.py\n")
    assert "link.py" not in packed(folder)


def test_what_is_no_file_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert refusal(folder) == f"{folder / 'pipe'} is a pipe; exclude it by .gitignore"


def test_names_that_archives_cannot_have_are_refused(folder: Path) -> None:
    (folder / "a\\b.py").touch()
    assert refusal(folder) == "'a\\\\b.py' has a name that archives cannot have; exclude it by .gitignore, or rename it"
    (folder / "a\\b.py").unlink()
    (folder / os.fsdecode(b"\xff.py")).touch()
    assert "has a name that is not UTF-8" in refusal(folder)


def test_too_much_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_FILES", 2)
    assert refusal(folder) == "has more than 2 files; exclude what the job does not need by .gitignore"
    monkeypatch.setattr(packing, "MAX_ARCHIVE_BYTES", 11)
    # Ten bytes of code, and what a zip file adds.
    told = refusal(folder / "nets.py")
    assert told.startswith(f"{folder / 'nets.py'} has {size_text(128)}; at most {size_text(11)} are allowed: exclude")
    monkeypatch.setattr(packing, "MAX_ARCHIVE_BYTES", 9)
    assert refusal(folder / "nets.py").startswith(f"{folder / 'nets.py'} has {size_text(10)}; at most")


def test_a_folder_without_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    told = f"there is no file of Python code (.py) in {tmp_path / 'empty'}, or .gitignore leaves all of them out"
    assert refusal(tmp_path / "empty") == told


def test_what_can_be_code(folder: Path, tmp_path: Path) -> None:
    check(folder)
    check(folder / "nets.py")
    assert refusal(tmp_path / "no.py", check) == f"there is no file {tmp_path / 'no.py'}"
    (folder / "my-nets.py").touch()
    told = "my-nets.py cannot be imported: 'my-nets' is not a name in Python; rename the file"
    assert refusal(folder / "my-nets.py", check) == told
    (folder / "nets.pkl").touch()
    assert (
        refusal(folder / "nets.pkl", check)
        == f"{folder / 'nets.pkl'} is neither a Python file (.py), a folder nor a wheel (.whl)"
    )
