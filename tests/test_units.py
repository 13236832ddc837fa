"""The units for systemd: they parse, each option in them exists, what they name is there, and systemd itself finds no fault."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.exceptions import TyperException

from tests.commands import check_command

FOLDER = Path(__file__).parents[1] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
PROGRAM = "/opt/thalweg/bin/thalweg"
# What each unit is closed by.
HARDENED = {
    "NoNewPrivileges": "yes",
    "DynamicUser": "yes",
    "CapabilityBoundingSet": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "RestrictNamespaces": "yes",
    "SystemCallFilter": "@system-service",
    "UMask": "0077",
}


def entries(unit: Path) -> dict[str, list[str]]:
    """The values of each setting of a unit, with continued lines joined."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().replace("\\\n", " ").splitlines():
        if line and line[0] not in "#[":
            name, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(name, []).append(value.strip())
    return found


def test_there_is_a_unit_for_each_part() -> None:
    assert [unit.stem for unit in UNITS] == ["thalweg-fleet", "thalweg-server", "thalweg-shard"]


@pytest.mark.parametrize("words", [["serve", "--unknown"], ["fleet", "--slots"], ["serve", "surplus"], ["unknown"]])
def test_a_command_that_does_not_exist_is_found(words: list[str]) -> None:
    with pytest.raises((KeyError, TyperException)):
        check_command(words)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_its_command_has_options_that_exist_and_files_that_are_there(unit: Path) -> None:
    found = entries(unit)
    (line,) = found["ExecStart"]
    program, *words = line.split()
    variable = words.pop()
    assert program == PROGRAM
    assert variable == f"$THALWEG_{unit.stem.removeprefix('thalweg-').upper()}_OPTIONS"
    # A variable that is not set is warned of at each start.
    assert f" {variable[1:]}=" in " " + found["Environment"][0]
    check_command(words)
    given = {credential.partition(":")[0] for credential in found["LoadCredential"]}
    assert set(re.findall(r"%d/(\S+)", line)) == given
    # Where it may write.
    states = [f"%{kind}/{found[name][0]}" for kind, name in (("S", "StateDirectory"), ("C", "CacheDirectory")) if name in found]
    written = re.findall(r"%[SC]/\S+", line + " " + found["Environment"][0])
    assert set(written) == set(states)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_it_is_hardened_and_ends_gracefully(unit: Path) -> None:
    found = entries(unit)
    assert {name: found[name] for name in HARDENED} == {name: [value] for name, value in HARDENED.items()}
    # SIGTERM for the main process alone: a fleet's workers finish their tasks.
    assert (found["KillMode"], found["Restart"]) == (["mixed"], ["on-failure"])
    assert int(found["TimeoutStopSec"][0]) > 10


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze (Debian's systemd)")
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    for unit in UNITS:
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.glob("*.service"))], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr + verified.stdout) == (0, "")
    for unit in tmp_path.glob("*.service"):
        judged = subprocess.run(
            ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert judged.returncode == 0, judged.stdout
