"""Makes the pictures of the page in docs/images, with headless Chromium: `python -m docs.make_pictures` in the root."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from PIL import Image

from tests.client.helpers import fleet_of_threads
from tests.client.test_web_browser import TOKEN, WIDTHS, Browser
from tests.end_to_end.cluster import running_server
from thalweg.client import Client, Job
from thalweg.client.composition import start_page
from thalweg.contract.endpoint import Address, Endpoint

IMAGES = Path(__file__).parent / "images"
# The colours of a picture: enough for text, few enough for a small file.
COLOURS = 224
SECONDS_TO_SETTLE = 4.0
ADAM = "optimizer.adam.learning_rate"


def submit(client: Client) -> tuple[Job, Job]:
    """Jobs as a group of people would have them. Gives two that are compared."""
    first = client.submit("digits", {"training.epochs": 20}, id="digits-baseline")
    first.wait(progress=False)
    second = client.submit("digits", {"training.epochs": 20, ADAM: 0.04, "model.layers[0].dense.units": 64}, id="digits-narrow")
    second.wait(progress=False)
    client.submit("xor", {"training.epochs": 200}, id="xor-small").wait(progress=False)
    failing = client.submit("digits", {"training.epochs": 3, "optimizer.sgd.learning_rate": 1e30}, id="digits-too-fast")
    while failing.state != "FAILED":
        time.sleep(0.1)
    ended = client.submit("and", {"training.epochs": 100_000}, id="and-stopped")
    while not ended.progress.step:
        time.sleep(0.1)
    ended.cancel()
    client.submit("digits", {"training.epochs": 2000, ADAM: 0.005}, id="digits-long")
    client.submit("digits", {"training.epochs": 400, "priority": 2}, id="digits-sweep-1")
    client.submit("digits", {"training.epochs": 400}, id="digits-sweep-2")
    client.submit("xor", id="xor-later").scale(0)
    return first, second


def picture(browser: Browser, name: str) -> None:
    """A picture of what the browser shows."""
    path = IMAGES / f"web-{name}.png"
    browser.driver.save_screenshot(str(path))
    with Image.open(path) as shown:
        shown.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            path, optimize=True
        )


def main() -> None:
    """Makes all pictures."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(running_server(folder / "server", token=TOKEN))
        client = stack.enter_context(Client(server.address, TOKEN))
        stack.enter_context(fleet_of_threads(server, TOKEN, slots=3, name="rack-1"))
        first, second = submit(client)
        page = start_page(Endpoint(server.address), Address("127.0.0.1", 0))
        stack.callback(page.stop)
        browser = Browser(page.link.rstrip("/"), folder / "profile")
        stack.callback(browser.driver.quit)
        browser.log_in()
        running = "digits-long"
        for scheme in ("light", "dark"):
            for width, size in WIDTHS.items():
                for name, path, ready in (("jobs", "/", "main .id"), ("job", f"/jobs/{running}", "figure polyline")):
                    # All of a job's page, where it is not endless.
                    browser.size(size[0], 1560 if (name, width) == ("job", "desk") else size[1], scheme)
                    browser.go(path)
                    browser.one(ready)
                    time.sleep(SECONDS_TO_SETTLE)
                    picture(browser, f"{name}-{width}-{scheme}")
        browser.size(1280, 1000)
        for name, path, ready in (("cluster", "/cluster", ".tile"), ("compare", f"/jobs/{first.id}/with/{second.id}", ".lines")):
            browser.go(path)
            browser.one(ready)
            time.sleep(SECONDS_TO_SETTLE)
            picture(browser, name)
        for job in client.jobs():
            if job.state in {"RUNNING", "QUEUED"}:
                job.cancel()


if __name__ == "__main__":
    main()
