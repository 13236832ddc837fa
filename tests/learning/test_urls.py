"""Data at URLs: over http with every trouble of a network, in a store of objects, and in files of the node."""

import io
import ipaddress
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.learning.urls import Site, served
from thalweg.learning import data
from thalweg.learning.data.access import Temporary
from thalweg.learning.data.errors import DataError
from thalweg.learning.data.remote import http, retries
from thalweg.learning.data.remote.limits import Limits, check_peer
from thalweg.learning.data.remote.located import located
from thalweg.learning.errors import NodeError
from thalweg.v1 import job_pb2

_CSV = b"a,b,y\n" + b"".join(b"%d,%d,%d\n" % (row, 2 * row, row % 2) for row in range(8))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses between attempts, and no proxies."""
    monkeypatch.setattr(retries, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def site() -> Iterator[Site]:
    with served(Site(_CSV)) as given:
        yield given


def nothing(sha256: str) -> Path:
    raise AssertionError("nothing is uploaded")


def access(limits: Limits = Limits()) -> Temporary:  # noqa: B008 - it cannot be changed
    given = Temporary(nothing)
    given.limits = limits
    return given


def content(url: str, limits: Limits = Limits()) -> bytes:  # noqa: B008 - it cannot be changed
    found = located(job_pb2.Data(csv=url), access(limits))
    return found.access.upload(found.data.sha256).read_bytes()


def test_a_table_is_read_at_its_url(site: Site) -> None:
    found = data.read(job_pb2.Data(csv=f"{site.url}/a.csv?token=secret"), nothing)
    assert found.x.tolist() == [[row, 2 * row] for row in range(8)]
    assert site.asked == [("/a.csv?token=secret", "")] * 2


def test_what_breaks_off_goes_on_where_it_was(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "MIN_PROGRESS", 1)
    site.broken = [len(_CSV), 10, 5]
    assert content(f"{site.url}/a.csv") == _CSV
    assert [asked for _, asked in site.asked] == ["", "", "bytes=10-", "bytes=15-"]


def test_without_ranges_it_begins_again(site: Site) -> None:
    site.ranges, site.broken = False, [len(_CSV), 10, 20]
    assert content(f"{site.url}/a.csv") == _CSV


@pytest.mark.parametrize("ranges", [True, False])
def test_attempts_end(site: Site, ranges: bool) -> None:
    site.ranges, site.broken = ranges, [len(_CSV)] + [3] * 100
    with pytest.raises(NodeError, match=r"data.csv: http://127.0.0.1:\d+/a.csv cannot be read from this node, after 6 attempts"):
        content(f"{site.url}/a.csv?token=secret")
    assert len(site.asked) == 7


def test_a_server_that_is_busy_is_asked_again(site: Site) -> None:
    site.statuses = [503, 429, 200, 500]
    assert content(f"{site.url}/a.csv") == _CSV


def test_silence_ends_an_attempt(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SILENCE_SECONDS", 0.05)
    site.broken, site.silent = [10] * 20, threading.Event()
    with pytest.raises(NodeError, match=r"nothing arrived for 0.05 s, after \d+ of"):
        content(f"{site.url}/a.csv")


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_is_forbidden_or_missing_is_an_error_at_once(site: Site, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(
        DataError, match=rf"^data.csv: http://127.0.0.1:\d+/a.csv cannot be read: the server answers {status}"
    ) as e:
        content(f"{site.url}/a.csv?token=secret")
    assert "secret" not in str(e.value)
    assert len(site.asked) == 1


def test_a_file_that_changes_while_it_is_read_is_an_error(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = http._Source.fill

    def changed(self: http._Source, size: int, tag: str, path: Path) -> None:
        site.tag = '"2"'
        fill(self, size, tag, path)

    monkeypatch.setattr(http._Source, "fill", changed)
    with pytest.raises(DataError, match=r"a.csv has changed while it was read; submit the job again"):
        content(f"{site.url}/a.csv")


def test_another_state_of_a_file_has_another_fingerprint(site: Site) -> None:
    spec = job_pb2.Data(csv=f"{site.url}/a.csv")
    first, again = (located(spec, access()).fingerprint for _ in range(2))
    site.tag = '"2"'
    assert first == again != located(spec, access()).fingerprint


@pytest.mark.parametrize(
    ("tag", "length", "wrong"), [("", True, "neither an ETag nor a Last-Modified"), ('"1"', False, "has no Content-Length")]
)
def test_what_could_change_unnoticed_is_refused(site: Site, tag: str, length: bool, wrong: str) -> None:
    site.tag, site.length = tag, length
    with pytest.raises(DataError, match=wrong):
        content(f"{site.url}/a.csv")


def test_a_redirect_is_followed_within_the_limits(site: Site) -> None:
    with served(Site(b"elsewhere")) as other:
        site.statuses, site.location = [302, 302], f"{other.url}/b.csv"
        assert content(f"{site.url}/a.csv") == b"elsewhere"
        site.statuses = [302]
        with pytest.raises(NodeError, match=r"b.csv is not a URL that this fleet reads"):
            content(f"{site.url}/a.csv", Limits(urls=(site.url,)))
        site.statuses, site.location = [302], "file:///etc/passwd"
        with pytest.raises((DataError, NodeError)):
            content(f"{site.url}/a.csv", Limits(roots=()))


def test_credentials_of_the_machine_are_not_read(site: Site) -> None:
    with pytest.raises(NodeError, match=r"link-local address 169.254.169.254"):
        content("http://169.254.169.254/latest/meta-data/a")
    site.statuses, site.location = [302], "http://[fe80::1]/a"
    with pytest.raises(NodeError, match=r"link-local address fe80::1"):
        content(f"{site.url}/a.csv")
    for address in ("::ffff:169.254.1.1", "fd00:ec2::254", "fe80::1%eth0"):
        with pytest.raises(NodeError):
            check_peer("data.csv", "http://name/a", address)
    check_peer("data.csv", "http://name/a", "10.0.0.1")


def test_a_name_that_leads_to_a_forbidden_address_is_refused_when_it_is_connected(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thalweg.learning.data.remote.limits._METADATA", {ipaddress.ip_address("127.0.0.1")})
    with pytest.raises(NodeError, match="credentials can be read"):
        content(f"http://localhost:{urlsplit(site.url).port}/a.csv")
    assert site.asked == []


def test_limits_end_at_the_parts_of_a_path() -> None:
    limits = Limits(urls=("s3://data", "https://host/folder/"))
    for url in ("s3://data", "s3://data/a", "https://host/folder/a"):
        limits.check_url("data.csv", url)
    for url in ("s3://data-secret/a", "https://host/folders", "https://host.evil/folder/a", "http://host/folder/a"):
        with pytest.raises(NodeError, match="--data-url"):
            limits.check_url("data.csv", url)


def test_files_of_the_node_are_read_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "a b.csv").write_bytes(_CSV)
    found = located(job_pb2.Data(csv=f"file://{tmp_path}/a%20b.csv"), access())
    assert found.access.upload(found.data.sha256) == tmp_path / "a b.csv"
    os.utime(tmp_path / "a b.csv", (1, 1))
    assert located(job_pb2.Data(csv=f"file://{tmp_path}/a%20b.csv"), access()).fingerprint != found.fingerprint
    for name in ("x", "y"):
        np.save(tmp_path / f"{name}.npy", np.arange(4.0).reshape(4, 1) if name == "x" else np.arange(4.0))
    npy = job_pb2.Npy(x=f"file://{tmp_path}/x.npy", y=f"file://{tmp_path}/y.npy")
    assert data.read(job_pb2.Data(npy=npy), nothing).y.tolist() == [0, 1, 2, 3]


def parquet(path: Path, rows: range) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pa.table({"a": [float(row) for row in rows], "y": [row % 2 for row in rows]}), path)


def rows(url: str) -> int:
    place = located(job_pb2.Data(parquet=url), access())
    from thalweg.learning.data.sources import SOURCES

    table = SOURCES["parquet"](place.data, place.access)
    assert not isinstance(table, data.Source)
    return len(table)


def test_a_folder_and_a_pattern_are_one_table(tmp_path: Path) -> None:
    for year in (2025, 2026):
        parquet(tmp_path / f"year={year}" / "a.parquet", range(3))
    parquet(tmp_path / "_old" / "a.parquet", range(3))
    assert rows(f"file://{tmp_path}") == 6
    assert rows(f"file://{tmp_path}/year=2026/*.parquet") == 3
    with pytest.raises(DataError, match="there is no file at"):
        rows(f"file://{tmp_path}/*.txt")


def test_roots_hold_also_for_links_and_dots(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "inside-not"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.csv").write_bytes(_CSV)
    (inside / "link.csv").symlink_to(outside / "a.csv")
    (inside / "folder").symlink_to(outside)
    (tmp_path / "root").symlink_to(inside)
    for roots in ((str(inside),), (str(tmp_path / "root"),), ("/nowhere", str(inside))):
        limits = Limits(roots=roots)
        assert content(f"file://{inside}/a.csv", limits) == content(f"file://{tmp_path}/root/a.csv", limits) == _CSV
        for name in ("link.csv", "folder/a.csv", "folder/nothing.csv", "folder/*.csv", "link*.csv"):
            with pytest.raises(NodeError, match="--data-root"):
                content(f"file://{inside}/{name}", limits)
        with pytest.raises(NodeError, match="--data-root"):
            content(f"file://{outside}/a.csv", limits)
    for dots in ("..", "%2e%2e"):
        with pytest.raises(DataError, match=r"has `\.\.` in its path"):
            content(f"file://{inside}/{dots}/inside-not/a.csv", Limits(roots=(str(inside),)))
    with pytest.raises(NodeError, match="--data-root"):
        content(f"file://{inside}/a.csv", Limits(roots=()))
    with pytest.raises(NodeError, match="No such file"):
        content(f"file://{inside}/nothing.csv", Limits(roots=(str(inside),)))


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("ftp://host/a", "ftp:// is not read; use one of file://"),
        ("https://user:password@host/a", "holds a user or a password"),
        ("https:///a", "names no host"),
        ("file://host/a", "names a host"),
        ("https://host/a b", "a space"),
        ("https://host:port/a", "is not a URL"),
    ],
)
def test_wrong_urls(url: str, wrong: str) -> None:
    with pytest.raises(DataError, match=wrong) as error:
        content(url)
    assert "password@" not in str(error.value)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A client of a stand-in for S3, with a bucket `data`, which workers use, too."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    yield client
    server.stop()


def test_objects_of_a_store(store: object, tmp_path: Path) -> None:
    for year in (2025, 2026):
        parquet(tmp_path / "a", range(3))
        store.put_object(Bucket="data", Key=f"trips/year={year}/a.parquet", Body=(tmp_path / "a").read_bytes())  # type: ignore[attr-defined]
    store.put_object(Bucket="data", Key="trips/_SUCCESS", Body=b"")  # type: ignore[attr-defined]
    store.put_object(Bucket="data", Key="a.csv", Body=_CSV)  # type: ignore[attr-defined]
    assert rows("s3://data/trips/") == 6
    assert rows("s3://data/trips/year=2026/*.parquet") == 3
    assert content("s3://data/a.csv") == _CSV
    before = located(job_pb2.Data(csv="s3://data/a.csv"), access()).fingerprint
    store.put_object(Bucket="data", Key="a.csv", Body=_CSV[:-1])  # type: ignore[attr-defined]
    assert located(job_pb2.Data(csv="s3://data/a.csv"), access()).fingerprint != before
    with pytest.raises(DataError, match=r"data.csv: s3://data/b.csv does not exist"):
        content("s3://data/b.csv")
    with pytest.raises(NodeError, match="--data-url"):
        content("s3://data/a.csv", Limits(urls=("s3://other",)))


def test_an_archive_larger_than_a_block_of_a_store(store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thalweg.learning.data.remote.stores._BLOCK", 100)
    file = io.BytesIO()
    np.savez(file, x=np.arange(40.0).reshape(20, 2), y=np.arange(20.0))
    store.put_object(Bucket="data", Key="a.npz", Body=file.getvalue())  # type: ignore[attr-defined]
    assert data.read(job_pb2.Data(npz="s3://data/a.npz"), nothing).x.tolist() == np.arange(40.0).reshape(20, 2).tolist()
