"""What the benchmarks make of measurements, and when they call a ratio a regression. No figure is looked at here."""

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import chart, cluster, parts, regressions, results, suite, tables
from benchmarks.parts import optimizers
from benchmarks.program import WARM_UP_SECONDS, WARM_UP_STEPS, Rate, Unavailable, Window, timed
from benchmarks.systems import SYSTEMS, ProgramError, System, limit_over_grpc
from benchmarks.systems.limit import specification
from benchmarks.workloads import WORKLOADS, Workload
from thalweg.learning.batch import INPUT, Field
from thalweg.learning.sequential.model import Sequential

RATES = {"thalweg": [90.0, 110.0, 100.0], "limit": [400.0, 200.0, 300.0], "ddp": [50.0, 40.0, 60.0], "ray": [20.0, 25.0, 30.0]}


def found(scale: float = 1.0) -> dict[str, Any]:
    """Results as they are written, with Thalweg's rates scaled."""
    rates = RATES | {"thalweg": [scale * rate for rate in RATES["thalweg"]]}
    measured = results.Measured(rates, {"tensorflow": "not installed"})
    machine = {"cpu": "a processor", "usable_cores": 2, "python": "3", "versions": {"numpy": "2"}, "peers": {"torch": "2.13.0"}}
    part = {"title": "processor time", "columns": ["workload", "steps", "ms a step"], "rows": [["tiny", 1200, 0.123456]]}
    small = results.of_workload(WORKLOADS["small"].title, measured)
    return {"machine": machine, "repeats": 3, "seconds": 1.0, "workloads": {"small": small}, "parts": {"cpu": part}}


def test_ratios_are_those_of_medians() -> None:
    small = found()["workloads"]["small"]
    assert small["steps_per_second"]["thalweg"] == {"median": 100.0, "min": 90.0, "max": 110.0, "all": [90.0, 110.0, 100.0]}
    assert small["ratio_to_ddp"] == {"thalweg": 2.0, "limit": 6.0, "ddp": 1.0, "ray": 0.5}
    assert small["ratio_to_ray"] == {"thalweg": 4.0, "limit": 12.0, "ddp": 2.0, "ray": 1.0}
    assert small["fraction_of_limit"] == {name: statistics.median(rates) / 300.0 for name, rates in RATES.items()}
    assert small["unavailable"] == {"tensorflow": "not installed"}


def test_without_a_base_there_are_no_ratios() -> None:
    alone = results.of_workload("", results.Measured({"thalweg": [1.0], "ddp": []}))
    assert list(alone["steps_per_second"]) == ["thalweg"]
    assert alone["ratio_to_ddp"] == alone["ratio_to_ray"] == alone["fraction_of_limit"] == {}


def test_a_ratio_that_fell_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    regressions.store(found(), file)
    assert regressions.check(found(1 - regressions.TOLERANCE + 0.01), file) == (True, ["3 ratios held, 0 regressed"])
    holds, lines = regressions.check(found(1 - regressions.TOLERANCE - 0.01), file)
    assert not holds
    assert lines[0] == "small.ratio_to_ddp.thalweg: stored 2.000, measured 1.480, a regression by more than 25%"
    assert len(lines) == 4


def test_what_was_not_measured_is_told_and_nothing_at_all_is_no_pass(tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    regressions.store(found(), file)
    without = found()
    del without["workloads"]["small"]["ratio_to_ddp"]["thalweg"]
    assert regressions.check(without, file) == (
        True,
        ["small.ratio_to_ddp.thalweg: stored 2.000, not measured", "2 ratios held, 0 regressed"],
    )
    assert not regressions.check(found() | {"workloads": {}}, file)[0]


def test_storing_keeps_other_workloads_and_the_tolerance(tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    file.write_text(json.dumps({"tolerance": 0.1, "workloads": {"wide": {}, "small": {}}}))
    regressions.store(found(), file)
    kept = json.loads(file.read_text())
    assert kept["tolerance"] == 0.1
    assert kept["workloads"]["wide"] == {}
    assert kept["workloads"]["small"]["ratio_to_ray"] == {"thalweg": 4.0}


def test_ratios_of_another_processor_are_others(tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    file.write_text(json.dumps({"tolerance": 0.1, "cpu": "another one", "workloads": {"wide": {}}}))
    _, lines = regressions.check(found(), file)
    assert "the stored ratios are of another one, the measured ones of a processor" in lines[-1] + lines[-2]
    regressions.store(found(), file)
    kept = json.loads(file.read_text())
    assert kept["cpu"] == "a processor"
    assert list(kept["workloads"]) == ["small"]


def test_the_command_reports_and_ends_as_the_check_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ratios, page = tmp_path / "ratios.json", tmp_path / "page.md"
    page.write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    for name, scale in (("good", 1.0), ("bad", 0.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps(found(scale)))
    good = ["--load", str(tmp_path / "good.json"), "--chart", str(tmp_path / "chart.png"), "--markdown", str(page)]
    assert command.main([*good, "--store", str(ratios)]) == 0
    assert (tmp_path / "chart.png").stat().st_size > 1000
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| Thalweg | 100 | 90 to 110 | 10 | 2.00 |  | 4.00 | 0.33 |" in text
    assert "| tiny | 1,200 | 0.123 |" in text
    assert command.main(["--load", str(tmp_path / "good.json"), "--check", str(ratios)]) == 0
    assert command.main(["--load", str(tmp_path / "bad.json"), "--check", str(ratios)]) == 1
    assert "small.ratio_to_ddp.thalweg: stored 2.000, measured 1.000" in capsys.readouterr().out


def test_ctrl_c_and_a_part_that_fails_lose_nothing_that_was_measured_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(part: parts.Part, seconds: float, repeats: int) -> dict[str, Any]:
        match part.name:
            case "cpu":
                return {"title": part.title, "columns": ["ms"], "rows": [[7]]}
            case "links":
                raise ProgramError("Traceback\nit broke")
            case _:
                raise KeyboardInterrupt

    monkeypatch.setattr(parts.Part, "measure", measure)
    file = tmp_path / "results.json"
    assert command.main(["cpu", "links", "startup", "--json", str(file)]) == 130
    found = json.loads(file.read_text())
    assert found["parts"]["cpu"]["rows"] == [[7]]
    assert (found["parts"]["links"]["columns"], found["parts"]["links"]["rows"]) == (["not measured"], [["it broke"]])
    assert "startup" not in found["parts"]


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text")
    with pytest.raises(ValueError, match="no place for results"):
        tables.write_markdown(found(), page)


@pytest.mark.parametrize("wrong", [["larger"], ["--systems", "none"], ["--check", "nowhere.json"], ["--repeats", "0"]])
def test_mistakes_on_the_command_line_are_told(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(wrong)
    assert ended.value.code == 2


class Fake(System):
    """A system whose rates are known."""

    def rate(self, workload: Workload, seconds: float) -> Rate:
        if self.name == "absent":
            raise Unavailable("not installed")
        if self.name == "broken":
            raise ProgramError("no answer")
        return Rate(int(50 * seconds), seconds)


def test_systems_take_turns_and_missing_ones_are_asked_once() -> None:
    turns: list[tuple[str, bool]] = []
    systems = [Fake(name, name, ()) for name in ("a", "absent", "b", "broken")]
    measured = suite.measure(
        WORKLOADS["tiny"], systems, 2, 1.0, lambda _, system, came: turns.append((system.name, came is None))
    )
    assert measured.rates == {"a": [50.0, 50.0], "b": [50.0, 50.0]}
    assert measured.unavailable == {"absent": "not installed", "broken": "no answer"}
    assert [name for name, asked in turns if asked] == ["a", "absent", "b", "broken", "a", "b"]


def test_steps_count_behind_the_warm_up() -> None:
    window = Window(2.0)
    assert window.at(100.0, 5) is None
    assert window.at(100.0 + WARM_UP_SECONDS, 5 + WARM_UP_STEPS - 1) is None
    assert window.at(110.0, 5 + WARM_UP_STEPS) is None
    assert window.at(111.9, 40) is None
    assert window.at(112.5, 40) == Rate(40 - 5 - WARM_UP_STEPS, 2.5)


def test_steps_taken_at_once_count_each(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 1.0)
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls: list[None] = []
    assert timed(lambda: calls.append(None), 3.0, at_once=5) == Rate(15, 3.0)
    assert len(calls) == 5


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)
def test_a_workloads_job_is_its_model(workload: Workload) -> None:
    spec = specification(workload)
    if not workload.module:
        assert Sequential(spec, {INPUT: Field(np.dtype(np.float32), workload.widths[:1])}).size == workload.parameters
    assert spec.training.batch_size == 2 * workload.samples
    assert spec.optimizer.WhichOneof("kind") == workload.optimizer


def test_the_two_that_meet_over_grpc_let_each_other_end() -> None:
    assert limit_over_grpc.measure(WORKLOADS["tiny"], argparse.Namespace(seconds=0.1)).steps > 0


def test_names_and_bases_are_systems() -> None:
    assert set(results.BASES.values()) <= set(SYSTEMS)
    for system in SYSTEMS.values():
        assert set(system.only) <= set(WORKLOADS)


def test_every_part_has_its_program_and_every_program_is_a_part() -> None:
    programs = {file.stem for file in Path(parts.__file__).parent.glob("*.py")} - {"__init__"}
    assert programs == set(parts.PARTS)
    assert not set(parts.PARTS) & {*WORKLOADS, "all"}


def test_an_update_moves_what_it_reads_and_writes() -> None:
    assert optimizers.bytes_of(0, 10) == 10 * 4 * 3
    assert optimizers.bytes_of(2, 10) == 10 * 4 * (1 + 1 + 1 + 2 * 2)


@pytest.mark.parametrize("parameters", [10**3, 10**5, 10**8])
def test_a_model_of_a_size_is_near_it(parameters: int) -> None:
    assert cluster.idle_workload(parameters).parameters == pytest.approx(parameters, rel=0.05)


def test_a_chart_of_nothing_is_drawn(tmp_path: Path) -> None:
    chart.draw({"workloads": {}}, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").exists()


@pytest.mark.parametrize("model", ["convolutional", "GPT", "wide MLP"])
def test_what_is_checked_on_a_gpu_holds_on_the_processor(model: str) -> None:
    pytest.importorskip("torch")
    from benchmarks import gpu
    from thalweg.learning.pytorch.settings import settled

    case = next(case for case in gpu.cases(small=True) if case.name == model)
    with settled(1):
        checks = list(gpu.checked(case, gpus=0))
    assert [what for what, holds, _ in checks if not holds] == []
    assert len(checks) >= 8
