"""The rules and the board of deploy/ speak of what there is. tests/end_to_end/test_alerts.py makes each alert fire."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.cluster import running_server
from tests.end_to_end.prometheus import BOARD, PROBLEM, RULES, alerts, board_expressions
from tests.end_to_end.scrape import page
from tests.end_to_end.test_alerts import FAULTS
from thalweg.contract.endpoint import Address, Endpoint
from thalweg.server.sharding.process import ShardConfig, ShardProcess

FREE = Address("127.0.0.1", 0)
OPERATIONS = Path(__file__).parents[1] / "docs" / "operations.md"
# Each metric of the board and the rules, `up` besides, which Prometheus makes.
NAME = r"\b(?:thalweg|process)_\w+"


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all series that a server and a shard may have."""
    with running_server(tmp_path_factory.mktemp("data"), metrics=FREE) as server:
        shard = ShardProcess(ShardConfig(FREE, Endpoint(server.address), metrics=FREE))
        shard.start()
        try:
            told = page(server.metrics, "/metrics").text + page(shard.metrics, "/metrics").text
        finally:
            shard.stop()
    names = set[str]()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", told, re.MULTILINE):
        names |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return names


def test_the_rules_are_about_metrics_that_exist(series: set[str]) -> None:
    expressions = re.findall(r"^ *expr: (.+)$", RULES.read_text(), re.MULTILINE)
    assert len(expressions) == len(alerts()) == len(set(alerts()))
    used = {name for expression in expressions for name in re.findall(NAME, expression)}
    assert used
    assert used <= series


def test_the_board_is_about_metrics_that_exist(series: set[str]) -> None:
    used = {name for expression in board_expressions() for name in re.findall(NAME, expression)}
    assert used
    assert used <= series


def test_the_panels_of_the_board_lie_beside_each_other_and_say_what_they_show() -> None:
    panels = json.loads(BOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    taken = set[tuple[int, int]]()
    for panel in panels:
        assert panel["description"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert all(x < 24 for x, _ in cells)
        taken |= cells


@pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))
def test_promtool_finds_the_rules_right() -> None:
    checked = subprocess.run(["promtool", "check", "rules", str(RULES)], text=True, check=True, capture_output=True)
    assert f"{len(alerts())} rules found" in checked.stdout


def test_each_alert_has_a_fault_that_makes_it_fire_and_is_described() -> None:
    assert list(FAULTS) == alerts()
    assert re.findall(r"^\| `(Thalweg\w+)` \|", OPERATIONS.read_text(), re.MULTILINE) == alerts()
