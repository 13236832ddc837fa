"""The model of a step's time: its arithmetic, its limits, and that the simulation agrees with it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scaling import __main__ as command
from benchmarks.scaling import page
from benchmarks.scaling.constants import CODECS, Constants, constants
from benchmarks.scaling.model import LAN, WAN, Model, Network, Training, tree_of_servers
from benchmarks.scaling.scenarios import Scenarios
from benchmarks.scaling.simulator import Clock, Cores, Resource, Simulation, simulate
from benchmarks.workloads import DENSE
from thalweg.contract import codecs

SIZE = {"float32": 1.0, "bfloat16": 0.5, "float16": 0.5, "int8": 0.25, "top_k": 0.02}
GIVEN = Constants(
    server_step=1e-4,
    server_message=5e-5,
    server_receive_byte=4e-10,
    server_send_byte=2e-10,
    worker_message=8e-5,
    worker_receive_byte=5e-10,
    worker_send_byte=3e-10,
    add_byte=1e-10,
    copy_byte=1e-10,
    fill_byte=5e-11,
    latency=2e-5,
    sleep=2e-2,
    update_byte={"sgd": 2e-10, "momentum": 3e-10, "adam": 4e-10},
    gradient=dict.fromkeys(DENSE, 1e-2),
    encode_byte={codec: 0.0 if codec == "float32" else 2e-10 for codec in CODECS},
    decode_byte={codec: 0.0 if codec == "float32" else 1e-10 for codec in CODECS},
    size=SIZE,
)
ONE_MACHINE = Network("one machine", 2e-5, float("inf"), cores=2)
SMALL, MEDIUM, LARGE = 1_000, 250_000, 5_000_000


def rows(given: Constants = GIVEN) -> list[list[Any]]:
    """Constants as the part `constants` reports them."""
    found: list[list[Any]] = []
    for name, value in vars(given).items():
        many = {name: value} if isinstance(value, float) else {f"{name}.{key}": one for key, one in value.items()}
        found += [[key, one, "s"] for key, one in many.items()]
    return found


def results(**parts: Any) -> dict[str, Any]:
    """Results with constants."""
    machine = {"usable_cores": 2, "cpu": "a processor", "python": "3"}
    return {"date": "2000-01-01", "machine": machine, "parts": {"constants": {"rows": rows()}} | parts}


MEASURED = {
    "rows": [
        [1_000, 2, 1, "float32", 1, 21.0],
        [4_000_000, 2, 1, "bfloat16", 1, 60.0],
        [4_000_000, 2, 1, "float32", 16, 400.0],
        ["several servers: not measured", "", "", "", "", ""],
    ]
}


def test_with_one_worker_and_one_piece_a_step_is_the_sum_of_its_stages() -> None:
    model = Model(Training(MEDIUM, 1e-2, 1), LAN, GIVEN)
    size = 4 * MEDIUM
    worker = 2 * 8e-5 + size * (5e-10 + 3e-10 + 1e-10)
    server = 1e-4 + 2 * 5e-5 + size * (4e-10 + 2e-10 + 2e-10 + 1e-10)
    task = size * 1e-10
    link = 2 * (size / 1.25e9 + 50e-6)
    assert model.seconds == pytest.approx(1e-2 + worker + server + task + link)


@pytest.mark.parametrize("network", [ONE_MACHINE, LAN, WAN], ids=lambda network: network.name)
@pytest.mark.parametrize("elements", [SMALL, MEDIUM])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("steps", [1, 16])
def test_one_worker_is_simulated_as_the_formula_says(network: Network, elements: int, codec: str, steps: int) -> None:
    model = Model(Training(elements, 1e-2, 1, codec=codec, steps=steps), network, GIVEN)
    assert simulate(model) == pytest.approx(model.seconds)


@pytest.mark.parametrize("network", [LAN, WAN], ids=lambda network: network.name)
@pytest.mark.parametrize("elements", [SMALL, MEDIUM, LARGE])
@pytest.mark.parametrize("workers", [1, 2, 8, 32])
def test_the_simulation_is_near_the_formula(network: Network, elements: int, workers: int) -> None:
    model = Model(Training(elements, 1e-2, workers), network, GIVEN)
    assert 0.8 < simulate(model) / model.seconds < 1.1


@pytest.mark.parametrize("servers", [1, 4])
@pytest.mark.parametrize("workers", [2, 16])
def test_no_resource_is_used_for_longer_than_a_simulated_step(servers: int, workers: int) -> None:
    model = Model(Training(LARGE, 1e-2, workers, servers=servers), LAN, GIVEN)
    parts, taken = model.parts, simulate(model)
    assert taken >= parts["messages"] + parts["bytes"] + parts["update"]
    assert taken >= parts["compute"] + parts["worker"]
    assert taken >= max(parts["worker's link"], parts["server's link"])


@pytest.mark.parametrize("elements", [SMALL, MEDIUM, LARGE])
@pytest.mark.parametrize("network", [LAN, WAN], ids=lambda network: network.name)
def test_more_workers_with_a_microbatch_each_make_no_step_shorter(elements: int, network: Network) -> None:
    times = [Model(Training(elements, 1e-2, count), network, GIVEN).seconds for count in (1, 2, 5, 10, 100, 10_000)]
    assert times == sorted(times)


def test_workers_share_out_microbatches_until_there_are_none_left() -> None:
    model = [Model(Training(SMALL, 1e-2, count, microbatches=8), LAN, GIVEN) for count in (1, 2, 3, 8, 16)]
    assert [one.training.each for one in model] == [8, 4, 3, 1, 1]
    assert model[-1].seconds == model[-2].seconds
    assert [one.compute for one in model[:2]] == pytest.approx([8e-2, 4e-2])


def test_a_codec_has_each_microbatch_sent_for_itself() -> None:
    assert Training(SMALL, 0.0, 2, microbatches=8).gradients == 1
    assert Training(SMALL, 0.0, 2, microbatches=8, codec="int8").gradients == 4


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_shorten_a_step_over_a_slow_link_by_what_they_make_smaller(codec: str) -> None:
    model = Model(Training(LARGE, 0.0, 8, codec=codec), WAN, GIVEN)
    down = SIZE[codec] if codecs.CODECS[codec].parameters else 1.0
    sent = 8 * 4 * LARGE * max(down, SIZE[codec]) / WAN.bandwidth
    assert model.parts["server's link"] == pytest.approx(sent)
    assert model.seconds == pytest.approx(sent, rel=0.1)


def test_shards_share_bytes_and_no_messages() -> None:
    one, four = (Model(Training(LARGE, 1e-2, 8, servers=servers), LAN, GIVEN).parts for servers in (1, 4))
    assert four["bytes"] == pytest.approx(one["bytes"] / 4)
    assert four["server's link"] == pytest.approx(one["server's link"] / 4)
    assert four["messages"] > one["messages"] / 4
    assert Training(SMALL, 0.0, 1, servers=4).shares == 1


def test_shards_shorten_a_step_that_the_servers_link_bounds() -> None:
    times = [simulate(Model(Training(LARGE, 1e-2, 8, servers=servers), LAN, GIVEN)) for servers in (1, 2, 4)]
    assert times == sorted(times, reverse=True)


def test_longer_rounds_cost_less_a_step_down_to_computing() -> None:
    models = [Model(Training(MEDIUM, 1e-2, 8, steps=steps), WAN, GIVEN) for steps in (1, 16, 256, 10**6)]
    times = [one.seconds_a_step for one in models]
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(1e-2 + 4 * MEDIUM * 2e-10, rel=1e-3)


def test_one_machine_is_never_faster_than_its_cores() -> None:
    job = Training(LARGE, 1e-2, 8)
    shared, apart = simulate(Model(job, ONE_MACHINE, GIVEN)), simulate(Model(job, replace(ONE_MACHINE, cores=None), GIVEN))
    parts = Model(job, ONE_MACHINE, GIVEN).parts
    everything = sum(parts[name] for name in ("messages", "bytes", "update")) + 8 * (parts["worker"] + parts["compute"])
    assert shared > apart
    assert shared >= everything / 2 * (1 - 1e-9)


def test_sleeping_workers_take_no_core() -> None:
    asleep = Model(Training(SMALL, 1e-2, 8, sleeps=True), ONE_MACHINE, GIVEN)
    awake = replace(asleep, training=replace(asleep.training, sleeps=False))
    assert simulate(asleep) < 1.3e-2
    assert simulate(awake) > 4e-2


def test_no_number_of_workers_exceeds_what_the_server_can_do() -> None:
    found = Scenarios(results())
    model = found.lan("tiny", 1)
    limit = found.without_end(model)
    rates = [count / found.lan("tiny", count).seconds for count in (1, 100, 10_000)]
    assert rates == sorted(rates)
    assert 0.9 * limit < rates[-1] < limit


def test_a_tree_of_servers_has_levels_for_all_workers() -> None:
    model = Model(Training(SMALL, 1e-2, 10_000), LAN, GIVEN)
    assert [tree_of_servers(model, fan)[0] for fan in (10, 100, 101, 10_000)] == [4, 2, 2, 1]
    assert tree_of_servers(model, 10_000)[1] == model.seconds
    assert tree_of_servers(model, 100)[1] < model.seconds / 10


def test_a_resource_serves_flows_in_turn() -> None:
    clock = Clock()
    resource, order = Resource(clock, Cores(None)), []
    for flow, name in (("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1")):
        resource.put(flow, 1.0, lambda name=name: order.append((name, clock.now)))  # type: ignore[misc]
    clock.run()
    assert order == [("a1", 1.0), ("a2", 2.0), ("b1", 3.0), ("a3", 4.0)]


def test_cores_are_shared() -> None:
    clock = Clock()
    cores, ends = Cores(2), []
    for _ in range(3):
        Resource(clock, cores).put(0, 1.0, lambda: ends.append(clock.now))
    clock.run()
    assert ends == [1.0, 1.0, 2.0]


def test_many_pieces_are_put_together() -> None:
    model = Model(Training(LARGE, 1e-2, 4), LAN, GIVEN)
    few = Simulation(model, most_pieces=40)
    assert few.pieces == 10
    assert few.seconds() == pytest.approx(simulate(model), rel=0.15)


def test_constants_are_read_as_they_are_told() -> None:
    assert constants(rows()) == GIVEN
    with pytest.raises(ValueError, match="server_step"):
        constants(rows()[1:])


def test_the_constants_that_are_kept_are_those_of_the_part() -> None:
    kept = json.loads(command.MEASURED.read_text())
    found = constants(kept["parts"]["constants"]["rows"])
    assert set(found.gradient) == set(DENSE)
    assert set(found.size) == set(found.encode_byte) == set(found.decode_byte) == set(codecs.CODECS)
    assert kept["date"]
    assert kept["machine"]["cpu"]


def test_a_step_is_held_against_what_was_measured() -> None:
    found = Scenarios(results(scaling=MEASURED))
    tiny, rounded, local = found.checked()
    assert tiny.error == pytest.approx(tiny.simulated / 0.021 - 1)
    assert tiny.simulated == simulate(Model(tiny.training, found.machine, GIVEN))
    assert rounded.training.codec == "bfloat16"
    assert local.asleep == pytest.approx(0.32)
    assert not found.has_shards


def test_the_command_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "_SHOWN", (1, 8))
    monkeypatch.setattr(page, "TABLES", {name: page.TABLES[name] for name in ("constants", "check", "wan")})
    given, text = tmp_path / "given.json", tmp_path / "page.md"
    given.write_text(json.dumps(results(scaling=MEASURED)))
    marks = [f"<!-- {name}: written by python -m benchmarks.scaling -->\nold\n<!-- end of {name} -->" for name in page.TABLES]
    text.write_text("before\n" + "\n".join(marks) + "\nafter\n")
    assert command.main(["--constants", str(given), "--page", str(text)]) == 0
    written = text.read_text()
    assert "old" not in written
    assert "| `server_message` | 50 µs |" in written
    assert "| 1,000 | 2 | 1 | float32 | 1 | 21 |" in written
    assert "Shards were not measured" in written
    text.write_text("no marks")
    with pytest.raises(ValueError, match="no place for constants"):
        command.main(["--constants", str(given), "--page", str(text)])


def test_a_missing_file_of_constants_is_told() -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--constants", "nowhere.json"])
    assert ended.value.code == 2
