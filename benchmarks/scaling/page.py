"""Writes the tables of a page, each between its marks."""

import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.scaling.model import tree_of_servers
from benchmarks.scaling.scenarios import ROUNDS, SHARDED, WAN_CODECS, Scenarios
from benchmarks.scaling.simulator import simulate
from benchmarks.tables import number
from benchmarks.workloads import DENSE

_SHOWN = (1, 8, 64, 1_000, 10_000)
_FASTER = (1, 2, 8, 64)
_FANS = (22, 100)
_MAX_SIMULATED = 1_000
_HOW = {
    "server_step": "processor time of the server for a step of idle workers, without its messages",
    "server_message": "the same with eight workers less that with one, divided by seven, and by the two messages of a worker",
    "worker_message": "processor time of a worker for a step, divided by its two messages",
    "server_receive_byte": "processor time of an end of a stream that carries 1 MiB chunks, and nothing else",
    "server_send_byte": "the same",
    "worker_receive_byte": "the same",
    "worker_send_byte": "the same",
    "latency": "a step of one idle worker, less the processor time of both ends, halved; at least 0",
    "sleep": "what a worker sleeps that is to sleep 20 ms",
    "copy_byte": "the same of a copy, per byte",
    "fill_byte": "the same of writing zeros, per byte",
    "add_byte": "processor time of the sum of two slabs of 20 million parameters, per byte of one",
    "update_byte": "the same of an update, per byte of the parameters",
    "gradient": "processor time of a microbatch of the workload, one thread",
    "size": "bytes of a chunk",
    "encode_byte": "processor time of a chunk of 1 MiB, per byte of float32",
    "decode_byte": "processor time of a chunk of 1 MiB, per byte of float32",
}


def seconds(value: float) -> str:
    """A time, in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)):
        if value >= scale:
            return f"{number(value / scale)} {unit}"
    return f"{number(value / 1e-12)} ps" if value else "0"


def table(heads: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first one to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def constants_table(found: Scenarios) -> str:
    """What was measured, and how."""
    machine, date = found.results["machine"], found.results.get("date", "an unknown day")
    rows = []
    for name, value, unit in found.results["parts"]["constants"]["rows"]:
        if name in {"encode_byte.float32", "decode_byte.float32"}:
            continue
        shown = number(value) if unit == "of float32" else seconds(value)
        if unit == "s/byte":
            shown = f"{1e9 * value:.3f} ns/byte"
        rows.append((f"`{name}`", shown, _HOW[name.partition(".")[0]]))
    said = f"Measured on {date}, on {machine['usable_cores']} cores of {machine['cpu']}, Python {machine['python']}."
    if "load_before" in machine:
        said += f" The load average was {machine['load_before']:.1f} before."
    # The last column is text.
    return said + "\n\n" + table(("constant", "value", "how"), rows).replace("---: | ---: |", "---: | --- |", 1)


def check_table(found: Scenarios) -> str:
    """The model against what was measured."""
    checked = found.checked()
    if not checked:
        return "Not yet measured."
    rows = []
    for one in checked:
        job = one.training
        what = [f"{job.elements:,}", str(job.workers), str(job.servers), job.codec, str(job.steps)]
        beside = [number(1000 * (time - one.asleep)) for time in (one.measured, one.simulated)]
        rows.append([*what, number(1000 * one.measured), number(1000 * one.simulated), f"{100 * one.error:+.0f}%", *beside])
    heads = ("parameters", "workers", "servers", "codec", "local steps", "measured, ms", "model, ms", "error")
    errors = [abs(one.error) for one in checked]
    said = f"Without sign, the error is {statistics.median(errors):.0%} in the median, and {max(errors):.0%} at most."
    if not found.has_shards:
        said += " Shards were not measured: the version that was has none."
    return table((*heads, "without the sleep: measured", "model"), rows) + "\n\n" + said


def bounds_table(found: Scenarios) -> str:
    """What bounds a step, by the number of workers."""
    rows = []
    for name in DENSE:
        models = [found.lan(name, count) for count in _SHOWN]
        rows.append([f"`{name}`", *(f"{seconds(model.seconds)}, {model.bound}" for model in models)])
    return table(("workload", *(f"{count:,}" for count in _SHOWN)), rows)


def limits_table(found: Scenarios) -> str:
    """How many times a plain loop workers are, with codecs and shards, and what the server cannot exceed."""
    rows = []
    for name in DENSE:
        for codec, servers in [(codec, 1) for codec in WAN_CODECS] + [("float32", servers) for servers in SHARDED[1:]]:
            models = [found.lan(name, count, codec=codec, servers=servers) for count in _FASTER]
            if models[0].training.shares < servers:
                continue
            taken = [simulate(model) for model in models]
            faster = [count * model.alone / time for count, model, time in zip(_FASTER, models, taken, strict=True)]
            most = found.without_end(models[0]) * models[0].alone
            # What eight workers do beside computing does not depend on how much they compute.
            beside = taken[_FASTER.index(8)] - models[0].compute
            samples = DENSE[name].samples * beside / models[0].compute
            cells = [number(value) for value in (*faster, most, samples)]
            rows.append([f"`{name}`", codec, str(servers), *cells])
    heads = ("workload", "codec", "servers", *(f"{count} worker{'s' * (count > 1)}" for count in _FASTER), "any number")
    return table((*heads, "samples each for half, 8 workers"), rows)


def simulated_table(found: Scenarios) -> str:
    """The formula against the simulation."""
    rows = []
    for name in ("tiny", "small", "wide"):
        for servers in SHARDED if name == "wide" else (1,):
            models = [found.lan(name, count, servers=servers) for count in _SHOWN if count <= _MAX_SIMULATED]
            rows.append([f"`{name}`", str(servers), *(f"{seconds(one.seconds)}, {seconds(simulate(one))}" for one in models)])
    return table(("workload", "servers", *(f"{count:,}" for count in _SHOWN if count <= _MAX_SIMULATED)), rows)


def wan_table(found: Scenarios) -> str:
    """Local steps over the slow network."""
    rows = []
    for name in ("tiny", "small", "wide"):
        for codec in WAN_CODECS:
            models = [found.wan(name, steps, codec) for steps in ROUNDS]
            cells = [f"{seconds(model.seconds_a_step)}, {100 * model.efficiency:.2g}%" for model in models]
            rows.append([f"`{name}`", codec, *cells])
    return table(("workload", "codec", "bulk", *(f"local, {steps} steps" for steps in ROUNDS[1:])), rows)


def many_table(found: Scenarios) -> str:
    """Ten thousand workers."""
    rows = []
    for name in DENSE:
        model = found.lan(name, 10_000)
        sharded = found.lan(name, 10_000, servers=16)
        cells = [seconds(model.compute), seconds(model.seconds)]
        cells.append(seconds(sharded.seconds) if sharded.training.shares == 16 else "one chunk")
        for fan in _FANS:
            levels, time = tree_of_servers(model, fan)
            cells.append(f"{seconds(time)}, {levels} levels")
        rows.append([f"`{name}`", *cells])
    per_second = 1 / found.constants.server_message
    said = f"One event loop takes {per_second:,.0f} messages a second; a step of 10,000 workers has at least 20,000."
    heads = ("workload", "computing", "one server", "16 servers", *(f"a tree, {fan} each" for fan in _FANS))
    return table(heads, rows) + "\n\n" + said


TABLES = {
    "constants": constants_table,
    "check": check_table,
    "bounds": bounds_table,
    "limits": limits_table,
    "simulated": simulated_table,
    "wan": wan_table,
    "many": many_table,
}


def write(found: Scenarios, page: Path) -> None:
    """Puts each table between its marks. Raises ValueError if the page lacks some."""
    text = page.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        begin, end = f"<!-- {name}: written by python -m benchmarks.scaling -->", f"<!-- end of {name} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"{page} has no place for {name}: a line {begin} and a line {end}")
        made = f"{begin}\n\n{make(found)}\n\n{end}"
        text = pattern.sub(lambda _, made=made: made, text)  # type: ignore[misc]
    page.write_text(text, encoding="utf-8")
