"""The page over HTTP: who may see it, what it answers, and what it refuses."""

import json
import os
import re
import signal
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from safetensors.numpy import load
from starlette.testclient import TestClient

from tests.client.helpers import NOWHERE, fleet_of_threads
from tests.end_to_end.cluster import running_server
from thalweg.client import Client
from thalweg.client.cli.app import run
from thalweg.client.cli.serving import command as serving
from thalweg.client.cli.serving import running
from thalweg.client.composition import start_page
from thalweg.client.web import sessions
from thalweg.client.web.application import Page
from thalweg.client.web.gateway import Credential
from thalweg.client.web.protection import CONTENT_SECURITY_POLICY, host_name
from thalweg.client.web.sessions import IDLE_SECONDS, LIFETIME_SECONDS, MAX_FAILURES, Sessions
from thalweg.contract.endpoint import Address, Endpoint, parse_address
from thalweg.server.process import Server

TOKEN = "the token of the server"
BASE = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a token, on which `gate` has succeeded and `waiting` waits."""
    with running_server(tmp_path_factory.mktemp("server"), token=TOKEN) as server, Client(server.address, TOKEN) as client:
        with fleet_of_threads(server, TOKEN):
            client.submit("xor", {"training.epochs": 20}, id="gate").wait()
        client.submit("xor", {"training.epochs": 30}, id="waiting")
        yield server


@pytest.fixture
def page(server: Server) -> Iterator[TestClient]:
    """A browser that has not logged in."""
    with browser(server) as page:
        yield page


@pytest.fixture
def user(page: TestClient) -> TestClient:
    """A browser that has logged in."""
    session = page.post("/api/login", json={"token": TOKEN}).json()["session"]
    page.headers["x-csrf-token"] = session["csrf"]
    return page


def browser(
    server: Server, base: str = BASE, key: str | None = None, hosts: tuple[str, ...] | None = (), *, secure: bool = False
) -> TestClient:
    page = Page(Endpoint(server.address), 8080, key=key, hosts=hosts, secure=secure)
    return TestClient(page.app, base_url=base)


def post(user: TestClient, path: str, value: object = None) -> Any:
    """An action as the page asks for it."""
    return user.post(path, json=value or {})


def test_the_page_needs_no_other_host_and_no_inline_script(page: TestClient) -> None:
    shown = page.get("/")
    files = re.findall(r'(?:src|href)="([^"#]*)"', shown.text)
    assert "/static/main.js" in files
    assert all(file.startswith("/") for file in files)
    seen, wanted = set[str](), {file for file in files if file.startswith("/static/")}
    while wanted:
        path = wanted.pop()
        seen.add(path)
        answer = page.get(path)
        assert answer.status_code == 200, path
        imported = re.findall(r'from "([^"]+)"', answer.text) if path.endswith(".js") else []
        wanted |= {str(answer.url.join(name).path) for name in imported} - seen
        assert not re.findall(r"https?://(?!www\.w3\.org)", answer.text), path
    package = Path(sessions.__file__).parent / "static"
    assert {path.removeprefix("/static/") for path in seen} == {
        file.relative_to(package).as_posix() for file in package.rglob("*.*") if file.name != "page.html"
    }
    assert not re.search(r"<script>|<style|style=|\son\w+=", shown.text)


@pytest.mark.parametrize("path", ["/", "/login", "/cluster", "/jobs/gate", "/jobs/gate/with/waiting", "/static/main.js", "/none"])
def test_every_answer_has_the_headers_that_protect_it(path: str, page: TestClient) -> None:
    headers = page.get(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "frame-ancestors 'none'" in CONTENT_SECURITY_POLICY


CLOSED = [
    ("GET", "/api/jobs/gate/file"),
    ("GET", "/api/jobs/gate/story"),
    ("GET", "/api/jobs/gate/with/waiting"),
    ("GET", "/api/jobs/gate/weights"),
    ("GET", "/streams/jobs"),
    ("GET", "/streams/jobs/gate"),
    ("GET", "/streams/cluster"),
    ("POST", "/api/jobs/waiting/cancel"),
    ("POST", "/api/jobs/waiting/scale"),
    ("POST", "/api/jobs/waiting/resume"),
    ("POST", "/api/logout"),
]


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_nothing_is_shown_or_done_without_a_session(method: str, path: str, page: TestClient) -> None:
    page.cookies.set("thalweg-8080", "not a session", domain="127.0.0.1")
    body: Any = {"json": {"workers": 1}} if method == "POST" else {}
    assert page.request(method, path, **body).status_code == 401


def test_every_address_of_the_api_is_among_those_that_are_tested(page: TestClient, server: Server) -> None:
    told = {re.sub(r"\{other\}", "waiting", re.sub(r"\{job\}", r"[a-z]+", path)) for path in addresses(server)}
    for path in told - {"/api/session", "/api/login"}:
        assert any(re.fullmatch(path, tested) for _, tested in CLOSED), path


def addresses(server: Server) -> set[str]:
    routes = Page(Endpoint(server.address), 1, key=None, hosts=(), secure=False).routes
    return {route.path for route in routes if route.path.startswith(("/api", "/streams"))}


def test_a_session_is_a_random_id_in_a_cookie_that_scripts_and_other_sites_do_not_get(page: TestClient) -> None:
    answer = page.post("/api/login", json={"token": TOKEN})
    cookie = SimpleCookie(answer.headers["set-cookie"])["thalweg-8080"]
    assert cookie["httponly"]
    assert cookie["samesite"].lower() == "strict"
    assert not cookie["secure"]
    assert TOKEN not in answer.text + answer.headers["set-cookie"]
    told = page.get("/api/session").json()["session"]
    assert (told["name"], told["role"]) == ("admin", "admin")
    assert "CancelJob" in told["methods"]


def test_over_https_the_cookie_is_secure(server: Server) -> None:
    with browser(server, "https://page.example", hosts=None, secure=True) as page:
        answer = page.post("/api/login", json={"token": TOKEN})
        cookie = SimpleCookie(answer.headers["set-cookie"])["__Host-thalweg"]
        assert cookie["secure"]
        assert cookie["path"] == "/"
        assert page.get("/api/session").json()["session"]
        assert "max-age" in answer.headers["strict-transport-security"]


@pytest.mark.parametrize("token", ["wrong", "", "wröng", "two\nlines", 7])
def test_a_wrong_token_begins_no_session(token: object, page: TestClient) -> None:
    answer = page.post("/api/login", json={"token": token})
    assert answer.status_code in {400, 401}
    assert "set-cookie" not in answer.headers
    assert page.get("/api/session").json() == {"session": None}


def test_tokens_cannot_be_tried_without_end(page: TestClient) -> None:
    for _ in range(MAX_FAILURES):
        assert page.post("/api/login", json={"token": "wrong"}).status_code == 401
    assert page.post("/api/login", json={"token": TOKEN}).status_code == 429


def test_the_key_of_the_link_stands_for_the_token_of_the_process(server: Server) -> None:
    page = Page(Endpoint(server.address, TOKEN), 8080, key="the key", hosts=(), secure=False)
    with TestClient(page.app, base_url=BASE) as browser:
        # Who has no key gets nothing, though the process has a token.
        assert browser.get("/api/session").json() == {"session": None}
        assert browser.post("/api/login", json={"token": "another key"}).status_code == 401
        assert browser.post("/api/login", json={"token": "the key"}).status_code == 200
        assert browser.get("/api/jobs/gate/file").status_code == 200


def test_a_server_without_tokens_needs_no_login(tmp_path: Path) -> None:
    with running_server(tmp_path) as server, browser(server) as page:
        assert page.get("/api/session").json()["session"]["needs_token"] is False
        assert page.get("/api/jobs/none/file").status_code == 404


def test_log_out_ends_the_session(user: TestClient) -> None:
    kept = dict(user.cookies)
    assert post(user, "/api/logout").status_code == 200
    user.cookies.update(kept)
    assert user.get("/api/jobs/gate/file").status_code == 401


ACTIONS = ["/api/jobs/waiting/cancel", "/api/jobs/waiting/resume", "/api/jobs/waiting/scale", "/api/logout"]


@pytest.mark.parametrize("path", ACTIONS)
def test_an_action_must_come_from_the_page_itself(path: str, user: TestClient, server: Server) -> None:
    csrf = user.headers.pop("x-csrf-token")
    assert user.post(path, json={"workers": 1}).status_code == 403
    assert user.post(path, json={"workers": 1}, headers={"x-csrf-token": "another"}).status_code == 403
    right = {"x-csrf-token": csrf}
    assert user.post(path, json={"workers": 1}, headers=right | {"origin": "http://evil.example"}).status_code == 403
    assert user.post(path, json={"workers": 1}, headers=right | {"sec-fetch-site": "cross-site"}).status_code == 403
    assert user.post(path, data={"workers": "1"}, headers=right).status_code == 415
    assert user.get(path, headers=right).status_code == 405
    with Client(server.address, TOKEN) as client:
        assert client.job("waiting").state == "QUEUED"
        assert client.job("waiting").spec.training.workers == 2


def test_another_site_cannot_log_a_user_in(page: TestClient) -> None:
    answer = page.post("/api/login", json={"token": TOKEN}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403


def test_scale_cancel_and_resume(user: TestClient, server: Server) -> None:
    with Client(server.address, TOKEN) as client:
        job = client.submit("xor", id="acted-on")
        scaled = post(user, "/api/jobs/acted-on/scale", {"workers": 3})
        assert scaled.json()["job"]["wanted_workers"] == 3
        assert "no fleet" in scaled.json()["note"]
        assert post(user, "/api/jobs/acted-on/scale", {"workers": 0}).json()["job"]["paused"]
        for wrong in (-1, 1.5, True, "2", None, 10**9):
            assert post(user, "/api/jobs/acted-on/scale", {"workers": wrong}).status_code == 400
        assert post(user, "/api/jobs/acted-on/scale", {"workers": 1, "priority": -7}).json()["job"]["priority"] == -7
        for wrong in (1.5, True, "2", 1001, -1001):
            assert post(user, "/api/jobs/acted-on/scale", {"workers": 1, "priority": wrong}).status_code == 400
        assert post(user, "/api/jobs/acted-on/cancel").json()["job"]["state"] == "CANCELLED"
        assert job.state == "CANCELLED"
        assert post(user, "/api/jobs/acted-on/scale", {"workers": 1}).status_code == 409
        assert post(user, "/api/jobs/acted-on/resume").json()["job"]["state"] == "QUEUED"
        assert post(user, "/api/jobs/gate/resume").status_code == 409
        assert post(user, "/api/jobs/none/cancel").status_code == 404
        job.cancel()
        job.delete()


def test_what_a_role_may_not_do_the_server_refuses(server: Server) -> None:
    with Client(server.address, TOKEN) as admin, browser(server) as page:
        secret = admin.access.create("looks", "viewer").secret
        session = page.post("/api/login", json={"token": secret}).json()["session"]
        assert (session["name"], session["role"]) == ("looks", "viewer")
        assert "CancelJob" not in session["methods"]
        page.headers["x-csrf-token"] = session["csrf"]
        assert page.get("/api/jobs/waiting/story").status_code == 200
        for action in ("cancel", "scale", "resume"):
            refused = page.post(f"/api/jobs/waiting/{action}", json={"workers": 1})
            assert (refused.status_code, refused.json()["reason"]) == (403, "PERMISSION_DENIED")
        admin.access.revoke("looks")
        # The session is of no more use than the token.
        assert page.get("/api/jobs/waiting/story").status_code == 401


def test_the_weights_are_the_file_that_the_command_writes(user: TestClient, server: Server, tmp_path: Path) -> None:
    answer = user.get("/api/jobs/gate/weights")
    assert answer.headers["content-disposition"] == 'attachment; filename="gate.safetensors"'
    with Client(server.address, TOKEN) as client:
        client.job("gate").save(tmp_path / "saved.safetensors")
    assert answer.content == (tmp_path / "saved.safetensors").read_bytes()
    assert load(answer.content)
    refused = user.get("/api/jobs/waiting/weights")
    assert (refused.status_code, refused.json()["reason"]) == (409, "NO_PARAMETERS")


def test_job_files_side_by_side(user: TestClient) -> None:
    told = user.get("/api/jobs/gate/with/waiting").json()
    assert told["differences"] == [{"field": "training.epochs", "left": "20", "right": "30"}]
    different = [(line["left"], line["right"]) for line in told["lines"] if line["differs"]]
    assert different == [("epochs = 20", "epochs = 30")]
    assert "epochs = 20" in user.get("/api/jobs/gate/file").json()["toml"]


def test_the_story_of_a_job(user: TestClient) -> None:
    entries = user.get("/api/jobs/gate/story").json()["entries"]
    assert {entry["source"] for entry in entries} == {"lifecycle", "coordinator"}


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8080", "192.168.1.2", ""])
def test_a_page_on_loopback_is_known_by_no_strangers_name(host: str, page: TestClient) -> None:
    assert page.get("/api/session", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:9999", "[::1]:8080", "LOCALHOST.", "proxy.example"])
def test_names_of_loopback_and_those_of_the_operator_are_known(host: str, server: Server) -> None:
    with browser(server, hosts=("proxy.example",)) as page:
        assert page.get("/api/session", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "name"), [("a.b:80", "a.b"), ("a.b", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("::1", ":"), ("A.", "a")]
)
def test_the_name_in_a_host_header(host: str, name: str) -> None:
    assert host_name(host) == name


def test_requests_have_a_bound(page: TestClient) -> None:
    assert page.post("/api/login", json={"token": "x" * (16 << 10)}).status_code == 413
    endless = iter([b"{}"])
    assert page.post("/api/login", content=endless, headers={"content-type": "application/json"}).status_code == 413


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 10_000])
def test_a_request_that_is_no_object_is_refused(body: bytes, page: TestClient) -> None:
    assert page.post("/api/login", content=body, headers={"content-type": "application/json"}).status_code == 400


def test_a_server_that_is_away_is_reported() -> None:
    page = Page(Endpoint(parse_address(NOWHERE)), 8080, key=None, hosts=(), secure=False)
    with TestClient(page.app, base_url=BASE) as browser:
        answer = browser.post("/api/login", json={"token": TOKEN})
    assert answer.status_code == 503
    assert answer.json()["reason"] == "UNREACHABLE"


def test_sessions_end_and_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    opened = Sessions(lambda: now[0])
    idle, used = opened.open(Credential("a"), "", "admin"), opened.open(Credential("b"), "", "admin")
    now[0] = IDLE_SECONDS
    assert opened.find(used.id) is used
    now[0] += 1
    assert opened.find(idle.id) is None
    while now[0] <= LIFETIME_SECONDS:
        assert opened.find(used.id) is used
        now[0] += IDLE_SECONDS
    assert opened.find(used.id) is None
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 2)
    first, second, third = (opened.open(Credential(name), "", "admin") for name in "abc")
    assert len(opened) == 2
    assert [opened.find(each.id) for each in (first, second, third)] == [None, second, third]
    assert len({first.id, second.id, third.id, first.csrf, second.csrf, third.csrf}) == 6


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--address", "0.0.0.0:0"], "--web-tls-cert and --web-tls-key"),
        (["--web-tls-cert", "page.pem"], "a certificate needs its key"),
        (["--web-tls-cert", "page.pem", "--web-tls-key", "key.pem"], "cannot use the certificate"),
        (["--address", "nowhere.invalid:0", "--trust-network"], "cannot listen at nowhere.invalid"),
    ],
)
def test_what_keeps_a_page_from_starting(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["web", *arguments]) in {1, 2}
    assert problem in capsys.readouterr().err


def test_a_page_over_https(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["certs", "init", str(tmp_path / "tls"), "--server", "127.0.0.1"]) == 0
    files = {name: tmp_path / "tls" / f"{name}.pem" for name in ("ca", "server", "server-key")}
    endpoint, anywhere = Endpoint(server.address), Address("0.0.0.0", 0)
    page = start_page(endpoint, anywhere, certificate=files["server"], key=files["server-key"], invite=True)
    try:
        # Beyond loopback, the link lets nobody in.
        assert page.link == f"https://0.0.0.0:{page.address.port}/"
        context = ssl.create_default_context(cafile=files["ca"])
        connection = HTTPSConnection("127.0.0.1", page.address.port, timeout=60, context=context)
        connection.request("POST", "/api/login", json.dumps({"token": TOKEN}), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200
        assert "__Host-thalweg=" in answer.headers["set-cookie"]
        assert "Secure" in answer.headers["set-cookie"]
        connection.close()
    finally:
        page.stop()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_serve_has_a_page_of_its_own(
    tls: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    announce = running.announce

    def announced(facts: dict[str, str], words: str, as_json: bool) -> None:
        announce(facts, words, as_json)
        with urlopen(facts["page"]) as shell, urlopen(f"{facts['page']}api/session") as session:
            seen.extend([shell.status, session.read()])
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(serving, "announce", announced)
    options: list[str] = []
    if tls:
        assert run(["certs", "init", "tls"]) == 0
        options = ["--tls-cert", "tls/server.pem", "--tls-key", "tls/server-key.pem"]
        assert run(["serve", "--address", "127.0.0.1:0", "--data", "kept", "--web", "127.0.0.1:0", *options]) == 2
        assert "--tls-ca: goes with --web and --tls-cert" in capsys.readouterr().err
        options += ["--tls-ca", "tls/ca.pem"]
    assert run(["serve", "--address", "127.0.0.1:0", "--data", "kept", "--web", "127.0.0.1:0", "--json", *options]) == 0
    # The server's own token is known to its user alone: the page asks for it.
    assert seen == [200, b'{"session":null}']
    assert "#key=" not in capsys.readouterr().out


def test_the_command_serves_the_page_of_a_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, str]] = []

    def announced(facts: dict[str, str], words: str, as_json: bool) -> None:
        running.announce(facts, words, as_json)
        key = facts["page"].partition("#key=")[2]
        request = Request(facts["page"].partition("#")[0] + "api/login", json.dumps({"token": key}).encode())
        request.add_header("Content-Type", "application/json")
        with urlopen(request) as answer:
            seen.append(json.loads(answer.read())["session"])
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("thalweg.client.cli.serving.web.announce", announced)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("THALWEG_TOKEN", TOKEN)
    assert run(["web", "--server", str(server.address), "--address", "127.0.0.1:0"]) == 0
    # On a terminal, the link lets its reader in, as whom the command calls the server.
    assert [(each["name"], each["role"]) for each in seen] == [("admin", "admin")]
    assert "the page is at http://127.0.0.1:" in capsys.readouterr().out
