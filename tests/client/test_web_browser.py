"""The page in a browser: headless Chromium, with the driver that Debian packages beside it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests.client.helpers import fleet_of_threads
from tests.end_to_end.barrier import Barrier
from tests.end_to_end.cluster import running_server
from tests.end_to_end.command import wait_for
from thalweg.client import Client, EpochEnded, StepsTaken
from thalweg.client.composition import start_page
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.server.process import Server

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed"),
]
TOKEN = "the token of the server"
SCRIPT = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
WIDTHS = {"phone": (390, 844), "tablet": (820, 1100), "desk": (1280, 900)}


@dataclass
class Site:
    """A server with two jobs that have ended, its page, and their addresses."""

    server: Server
    client: Client
    base: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with running_server(folder / "server", token=TOKEN) as server, Client(server.address, TOKEN) as client:
        with fleet_of_threads(server, TOKEN):
            client.submit("digits", {"training.epochs": 12}, id="digits-first").wait()
            client.submit("digits", {"training.epochs": 12, "optimizer.adam.learning_rate": 0.03}, id="digits-faster").wait()
        page = start_page(Endpoint(server.address), Address("127.0.0.1", 0))
        try:
            yield Site(server, client, page.link.rstrip("/"))
        finally:
            page.stop()


class Browser:
    """A browser, and what a user does with it."""

    def __init__(self, base: str, profile: Path) -> None:
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"):
            options.add_argument(argument)
        # The browser itself calls nobody.
        for argument in ("--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync"):
            options.add_argument(argument)
        options.add_argument(f"--user-data-dir={profile}")
        options.binary_location = CHROMIUM or ""
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.base = base
        self.driver = webdriver.Chrome(options, Service(DRIVER))
        self.requested: set[str] = set()

    def go(self, path: str = "/") -> None:
        self.driver.get(self.base + path)

    def log_in(self, token: str = TOKEN) -> None:
        self.driver.delete_all_cookies()
        self.go("/")
        self.one("#token").send_keys(token + Keys.ENTER)
        self.one("#nav a")

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> WebElement:
        """An element that is shown, as soon as it is."""
        shown = "return [...document.querySelectorAll(arguments[0])].find(each => each.checkVisibility())"
        found = wait_for(lambda: self.script(shown, selector))
        assert isinstance(found, WebElement)
        return found

    def texts(self, selector: str) -> list[str]:
        """The texts of all elements that are shown, at one moment."""
        shown = "[...document.querySelectorAll(arguments[0])].filter(each => each.checkVisibility())"
        return list(self.script(f"return {shown}.map(each => each.innerText)", selector))

    def text(self, selector: str) -> str:
        """The text of the first of them, empty if there is none."""
        return next(iter(self.texts(selector)), "")

    def buttons(self) -> list[str]:
        return self.texts(".actions button, .actions a")

    def press(self, word: str, within: str = "main") -> None:
        """Presses a button as soon as it is there."""
        find = f"[...document.querySelectorAll('{within} button, {within} a')]"
        seen = "each.checkVisibility() && !each.disabled && each.innerText.startsWith(arguments[0])"
        press = f"const found = {find}.find(each => {seen}); found?.click(); return Boolean(found)"
        wait_for(lambda: self.script(press, word))

    def script(self, code: str, *arguments: object) -> Any:
        return self.driver.execute_script(code, *arguments)

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": "reduce"}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def _log(self, kind: str) -> list[dict[str, Any]]:
        return list(self.driver.get_log(kind))  # type: ignore[no-untyped-call]

    def problems(self) -> list[str]:
        """What the browser has complained about since it was last asked."""
        return [entry["message"] for entry in self._log("browser") if entry["level"] in {"SEVERE", "WARNING"}]

    def hosts(self) -> set[str]:
        """The hosts to which requests have gone since it was last asked."""
        messages = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return {urlsplit(url).netloc for url in urls if urlsplit(url).scheme in {"http", "https", "ws", "wss"}}


@pytest.fixture(scope="module")
def chromium(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(site.base, tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A browser that is logged in. Afterwards, it has called no other host and complained of nothing."""
    chromium.size(*WIDTHS["desk"])
    chromium.hosts()
    chromium.problems()
    chromium.log_in()
    yield chromium
    assert chromium.hosts() == {urlsplit(chromium.base).netloc}
    assert chromium.problems() == []


def test_a_wrong_token_is_refused_with_a_sentence(chromium: Browser) -> None:
    chromium.driver.delete_all_cookies()
    chromium.go("/jobs/digits-first")
    chromium.one("#token").send_keys("wrong" + Keys.ENTER)
    wait_for(lambda: "does not know this token" in chromium.text(".login .problem"))
    field = chromium.one("#token")
    field.send_keys(TOKEN + Keys.ENTER)
    # It goes where the user wanted to go.
    wait_for(lambda: chromium.text("h1") == "digits-first")


def table(browser: Browser, title: str) -> list[list[str]]:
    """The table behind a chart, as a reader of the page finds it."""
    find = "return [...document.querySelectorAll('figure')].find(each => each.querySelector('h3').textContent === arguments[0])"
    figure = wait_for(lambda: browser.script(find, title))
    browser.script("arguments[0].querySelector('details').open = true", figure)
    read = "return [...arguments[0].querySelectorAll('tbody tr')].map(row => [...row.children].map(cell => cell.textContent))"
    return list(wait_for(lambda: browser.script(read, figure)))


def test_a_chart_has_the_points_that_the_api_tells(browser: Browser, site: Site) -> None:
    browser.go("/jobs/digits-first")
    events = site.client.job("digits-first").history()
    losses = [loss for event in events if isinstance(event, StepsTaken) for loss in event.losses]
    epochs = [event for event in events if isinstance(event, EpochEnded)]
    assert len(losses) == 276
    rows = wait_for(lambda: len(found := table(browser, "Loss")) == len(losses) and found)
    assert [row[0] for row in rows] == [f"{step:,}" for step in range(1, 277)]
    assert [float(row[1]) for row in rows] == pytest.approx(losses, rel=1e-3)
    validated = {int(row[0]): float(row[3]) for row in rows if row[3]}
    assert validated == pytest.approx({each.step: each.validation.loss for each in epochs if each.validation}, rel=1e-3)
    accuracies = {int(row[0]): row[1] for row in table(browser, "Validation: accuracy")}
    assert accuracies == {each.step: f"{100 * (each.validation.accuracy or 0):.1f} %" for each in epochs if each.validation}
    # As many points are drawn.
    line = browser.one("figure polyline.colour-1").get_attribute("points") or ""
    assert len(line.split()) == len(losses)
    # By keyboard.
    browser.one("figure .surface").send_keys(Keys.HOME)
    wait_for(lambda: browser.text("figure .reading").startswith("step 1: training "))


def test_a_job_is_watched_scaled_and_cancelled(browser: Browser, site: Site, barrier: Barrier) -> None:
    barrier.hold(46, "live")
    with fleet_of_threads(site.server, TOKEN):
        job = site.client.submit("digits", {"training.epochs": 4}, id="live")
        browser.press("live")
        wait_for(lambda: browser.text("h1") == "live")
        wait_for(lambda: browser.text(".title .badge") == "Running")
        wait_for(lambda: "step 46 of 92" in browser.text("main"))
        # Steps are told a few times a second: the last ones before the barrier may come later.
        assert 0 < len(table(browser, "Loss")) <= 46
        wait_for(lambda: browser.all(".stacked tbody tr"))
        assert browser.buttons() == ["Scale", "Cancel", "Download weights", "Compare…"]
        browser.press("Scale")
        urgent = browser.one("dialog #priority")
        urgent.clear()
        urgent.send_keys("5")
        field = browser.one("dialog #workers")
        field.clear()
        field.send_keys("1" + Keys.ENTER)
        wait_for(lambda: job.refresh().spec.training.workers == 1)
        assert job.spec.priority == 5
        barrier.release()
        wait_for(lambda: browser.text(".title .badge") == "Succeeded")
        wait_for(lambda: len(table(browser, "Loss")) == 92)
        assert browser.buttons() == ["Download weights", "Compare…"]
        assert job.state == "SUCCEEDED"
        # Another one is cancelled.
        barrier.hold(2, "ends-early")
        other = site.client.submit("xor", {"training.epochs": 100}, id="ends-early")
        browser.go("/jobs/ends-early")
        wait_for(lambda: "Cancel" in browser.buttons())
        browser.press("Cancel")
        browser.press("Cancel the job", "dialog")
        wait_for(lambda: browser.text(".title .badge") == "Cancelled")
        assert other.state == "CANCELLED"
        wait_for(lambda: "Resume" in browser.buttons())


def test_a_viewer_sees_no_button_that_changes_anything(browser: Browser, site: Site) -> None:
    secret = site.client.access.create("looks", "viewer").secret
    browser.log_in(secret)
    assert "looks (viewer)" in browser.text("#user")
    waiting = site.client.submit("xor", id="seen")
    for job in ("seen", "digits-first"):
        browser.go(f"/jobs/{job}")
        wait_for(lambda: browser.buttons() == ["Compare…"])
    waiting.cancel()


def test_text_of_users_stays_text(browser: Browser, site: Site) -> None:
    fleet = f"fleet {SCRIPT}"[:90]
    columns = {"x": [0.0, 1.0, 2.0], SCRIPT: [0.0, 1.0, 2.0]}
    odd = site.client.submit("xor", {"data.target": SCRIPT}, data=columns, id="odd")
    odd.cancel()
    with fleet_of_threads(site.server, TOKEN, name=fleet):
        browser.go("/cluster")
        wait_for(lambda: fleet in browser.text("main"))
    browser.go("/jobs/odd")
    browser.script("for (const each of document.querySelectorAll('details')) each.open = true")
    wait_for(lambda: "document.title='taken'" in browser.text("main pre"))
    browser.go("/jobs/odd/with/digits-first")
    wait_for(lambda: SCRIPT in browser.text("main"))
    assert browser.driver.title == "odd and digits-first – Thalweg"
    # Nor could a script of the page itself make markup of text.
    refused = "try { document.body.innerHTML = '<p>'; return 'made' } catch (error) { return error.name }"
    assert browser.script(refused) == "TypeError"
    assert [line for line in browser.problems() if "TrustedHTML" not in line] == []


@pytest.mark.nightly
def test_two_jobs_side_by_side(browser: Browser) -> None:
    browser.go("/jobs/digits-faster")
    browser.press("Compare…")
    browser.press("digits-first", "dialog")
    wait_for(lambda: browser.driver.current_url.endswith("/jobs/digits-faster/with/digits-first"))
    wait_for(lambda: "optimizer.adam.learning_rate" in browser.text("main"))
    assert "0.03" in browser.text("main table.pair:has(code) tbody tr")
    # A column for each of them.
    wait_for(lambda: [len(row) for row in table(browser, "Validation: accuracy")] == [3] * 12)
    marked = browser.texts(".lines tr.differs")
    assert any("learning_rate = 0.03" in line for line in marked)


@pytest.mark.nightly
def test_the_list_is_searched(browser: Browser) -> None:
    browser.one("#search").send_keys("faster")
    wait_for(lambda: browser.texts("main .id") == ["digits-faster"])
    assert browser.driver.current_url.endswith("?text=faster")
    wait_for(lambda: browser.all(".spark polyline"))
    browser.driver.refresh()
    wait_for(lambda: browser.texts("main .id") == ["digits-faster"])


@pytest.mark.nightly
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(width: str, browser: Browser) -> None:
    browser.size(*WIDTHS[width])
    for path, ready in {
        "/": "main .id",
        "/jobs/digits-first": "figure polyline",
        "/cluster": ".tile",
        "/jobs/digits-first/with/digits-faster": ".lines",
    }.items():
        browser.go(path)
        browser.one(ready)
        assert browser.script("return document.documentElement.scrollWidth <= innerWidth"), path
        cut = "return [...document.querySelectorAll('.table-card')].filter(each => each.scrollWidth > each.clientWidth).length"
        assert browser.script(cut) == 0, path


@pytest.mark.nightly
def test_everything_has_a_name_and_each_page_has_its_landmarks(browser: Browser) -> None:
    for path, ready in {"/": "main .id", "/jobs/digits-first": "figure polyline", "/cluster": ".tile"}.items():
        browser.go(path)
        browser.one(ready)
        tree = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        named = {
            "button",
            "link",
            "textbox",
            "searchbox",
            "progressbar",
            "progressindicator",
            "image",
            "figure",
            "table",
            "dialog",
        }
        nameless = [
            node
            for node in tree
            if not node["ignored"] and node["role"]["value"] in named - {"figure"} and not node.get("name", {}).get("value")
        ]
        assert nameless == [], path
        roles = [node["role"]["value"] for node in tree if not node["ignored"]]
        assert {"banner", "main", "navigation"} <= set(roles)
        assert len(browser.all("h1")) == 1
