"""A real Prometheus, with the rules of deploy/, for as long as a test needs it."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.end_to_end.command import wait_for
from thalweg.contract.endpoint import Address

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "thalweg.rules.yml"
BOARD = DEPLOY / "grafana" / "thalweg.json"
PROBLEM = None if shutil.which("prometheus") and shutil.which("promtool") else "needs Debian's prometheus"
# What is minutes in the rules.
_SECONDS = 1
_CONFIGURATION = """
global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}
rule_files: [RULES]
scrape_configs:
  - job_name: thalweg
    file_sd_configs: [{files: [TARGETS], refresh_interval: 1s}]
"""


def alerts() -> list[str]:
    """The names of the rules, in their order."""
    return re.findall(r"^ *- alert: (\w+)$", RULES.read_text(), re.MULTILINE)


def board_expressions() -> list[str]:
    """What the panels of the board show, with the values that Grafana puts in."""
    panels = json.loads(BOARD.read_text())["panels"]
    given = [target["expr"] for panel in panels for target in panel["targets"]]
    return [expression.replace("$instance", ".*").replace("$__rate_interval", "1m") for expression in given]


def hastened(rules: str) -> str:
    """The rules for tests: they wait for seconds, not minutes, and look back some seconds for what has ceased."""
    return re.sub(r"\[5m\]", "[3s]", re.sub(r"for: \d+m", f"for: {_SECONDS}s", rules))


class Alert(NamedTuple):
    """An alert that fires or is about to."""

    name: str
    state: str
    labels: dict[str, str]
    summary: str


class Prometheus:
    """Its HTTP interface."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def _get(self, path: str, **query: str) -> Any:
        url = f"http://{self._address}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=20) as response:
            return json.load(response)["data"]

    def query(self, expression: str) -> list[Any]:
        """What an expression gives now. Raises HTTPError if it is none."""
        found: list[Any] = self._get("/api/v1/query", query=expression)["result"]
        return found

    def up(self) -> int:
        """How many targets answer."""
        return len(self.query("up == 1"))

    def alerts(self) -> list[Alert]:
        """The alerts that fire or are about to."""
        return [
            Alert(each["labels"]["alertname"], each["state"], each["labels"], each["annotations"]["summary"])
            for each in self._get("/api/v1/alerts")["alerts"]
        ]

    def firing(self, name: str) -> list[Alert]:
        """The alerts of a name that fire."""
        return [alert for alert in self.alerts() if alert.name == name and alert.state == "firing"]


@contextmanager
def prometheus(folder: Path, targets: Sequence[str]) -> Iterator[Prometheus]:
    """A Prometheus on a free port of loopback that scrapes some addresses, and has looked at them once."""
    folder.mkdir()
    (folder / "rules.yml").write_text(hastened(RULES.read_text()))
    (folder / "targets.json").write_text(json.dumps([{"targets": list(targets)}]))
    configuration = _CONFIGURATION.replace("RULES", str(folder / "rules.yml")).replace("TARGETS", str(folder / "targets.json"))
    (folder / "prometheus.yml").write_text(configuration)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        port = wait_for(lambda: _port(folder / "log", process))
        found = Prometheus(Address("127.0.0.1", port))
        wait_for(lambda: found.up() == len(targets))
        yield found
    finally:
        process.terminate()
        process.wait()


def _port(log: Path, process: "subprocess.Popen[bytes]") -> int | None:
    text = log.read_text()
    assert process.poll() is None, text
    found = re.search(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', text)
    return int(found[1]) if found and "Server is ready" in text else None
