"""Manifests: what is written is read, and what is wrong is refused."""

import json
from typing import Any

import pytest

from thalweg.contract.manifests import Entry, is_manifest, read, written

SUM = "0123456789abcdef" * 4
FILES = [{"path": "a/b.parquet", "size": 1, "sha256": SUM}]


def test_a_manifest_is_read_as_it_was_written() -> None:
    entries = [Entry("b", 0, "b" * 64), Entry("a/\u00e9 =1", 1 << 40, SUM)]
    content = written(entries)
    assert is_manifest(content[:32])
    assert read(content) == sorted(entries)
    assert written(reversed(entries)) == content


@pytest.mark.parametrize("start", [b"PAR1", b"", b'{"files":', b'{"thalweg"'])
def test_other_files_are_no_manifests(start: bytes) -> None:
    assert not is_manifest(start)


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "/etc/passwd"},
        {"path": "a/../../b"},
        {"path": ""},
        {"path": "a\0"},
        {"path": 3},
        {"size": -1},
        {"size": "1"},
        {"size": True},
        {"sha256": "../jobs"},
        {"sha256": SUM[1:]},
    ],
)
def test_what_could_lead_elsewhere_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="damaged"):
        read(json.dumps({"thalweg_manifest": 1, "files": [FILES[0] | changes]}).encode())


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"thalweg_manifest": 2, "files": []}, "has the format 2; this release reads format 1"),
        ({"thalweg_manifest": 1}, "damaged"),
        ({"thalweg_manifest": 1, "files": FILES * 2}, "twice"),
        ([], "damaged"),
    ],
)
def test_other_formats_are_refused(document: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read(json.dumps(document).encode())
