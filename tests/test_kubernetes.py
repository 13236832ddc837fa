"""The manifests for Kubernetes: they parse, what they name is there, and each command in them has options that exist."""

import re
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.commands import check_command

# Of Ray's; it has no stubs.
yaml: Any = import_module("yaml")
FOLDER = Path(__file__).parents[1] / "deploy" / "kubernetes"
# Made by the operator: the keys that docs/operations.md has him put there.
SECRETS = {
    "thalweg-server": {"token"},
    "thalweg-fleet": {"token"},
    "thalweg-ray": {"token"},
    "thalweg-tls": {"tls.crt", "tls.key", "ca.crt"},
}


def read(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


CUSTOMIZED = read("kustomization.yaml")[0]
OBJECTS = [each for name in CUSTOMIZED["resources"] for each in read(name)]
WORKLOADS = [each for each in OBJECTS if each["kind"] in ("StatefulSet", "Deployment")]


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = workload["spec"]["template"]["spec"]
    return spec


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(workload)["containers"]
    assert isinstance(only, dict)
    return only


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in OBJECTS if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def commands(workload: dict[str, Any]) -> list[list[str]]:
    """The commands of its container, each a list of words."""
    made = container(workload)
    if "command" not in made:
        return [["thalweg", *made["args"]]]
    assert made["command"] == ["sh", "-c"]
    (line,) = made["args"]
    return [shlex.split(part.removeprefix("exec ")) for part in re.split(r"\s*&&\s*", line.strip())]


IDS = [each["metadata"]["name"] for each in WORKLOADS]


def test_every_file_is_used_and_there_is_a_pod_for_each_part() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*CUSTOMIZED["resources"], "kustomization.yaml"}
    assert IDS == ["thalweg-server", "thalweg-head", "thalweg-node"]
    assert CUSTOMIZED["namespace"] == named("Namespace", "thalweg")["metadata"]["name"]


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("workload", WORKLOADS, ids=IDS)
def test_its_commands_have_options_that_exist(workload: dict[str, Any]) -> None:
    for program, *words in commands(workload):
        if program == "thalweg":
            check_command(words)
        else:
            from ray.scripts.scripts import cli

            assert (program, words[0]) == ("ray", "start")
            known = {option for each in cli.commands["start"].params for option in each.opts}
            assert {word.partition("=")[0] for word in words[1:]} <= known


@pytest.mark.parametrize("workload", WORKLOADS, ids=IDS)
def test_what_its_commands_read_is_mounted(workload: dict[str, Any]) -> None:
    made, claims = container(workload), workload["spec"].get("volumeClaimTemplates", [])
    volumes = {each["name"]: each for each in pod(workload)["volumes"]} | {each["metadata"]["name"]: each for each in claims}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in made["volumeMounts"]}
    assert len(mounts) == len(volumes) == len(made["volumeMounts"])
    there = {"/data"} if "/data" in mounts else set()
    for path, volume in mounts.items():
        if secret := volume.get("secret"):
            keys = {item["key"] for item in secret["items"]} if "items" in secret else SECRETS[secret["secretName"]]
            assert keys <= SECRETS[secret["secretName"]]
            there |= {f"{path}/{key}" for key in keys}
    words = " ".join(word for command in commands(workload) for word in command)
    read = set(re.findall(r"/(?:secrets|data)/[\w./-]+", words + " ".join(each["value"] for each in made.get("env", []))))
    assert {path for path in read if not path.startswith("/data/")} <= there
    assert "/data" in there or not any(path.startswith("/data/") for path in read)
    # Nothing else can be written.
    assert made["securityContext"]["readOnlyRootFilesystem"] is True


def test_workers_on_nodes_find_the_files_that_the_fleet_names() -> None:
    (head,) = [words for words in commands(named("Deployment", "thalweg-head")) if words[0] == "thalweg"]
    paths = {word for word in head if word.startswith("/secrets/")}
    mounted = {each["mountPath"] for each in container(named("Deployment", "thalweg-node"))["volumeMounts"]}
    assert paths
    assert {str(Path(path).parent) for path in paths} <= mounted


@pytest.mark.parametrize("workload", WORKLOADS, ids=IDS)
def test_it_runs_without_privileges_and_has_time_to_end(workload: dict[str, Any]) -> None:
    spec, made = pod(workload), container(workload)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert made["securityContext"]["allowPrivilegeEscalation"] is False
    assert made["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec["automountServiceAccountToken"] is False
    assert spec["terminationGracePeriodSeconds"] > 10


@pytest.mark.parametrize("workload", WORKLOADS, ids=IDS)
def test_ports_labels_and_services_agree(workload: dict[str, Any]) -> None:
    made, template = container(workload), workload["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert workload["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {each["name"]: each["containerPort"] for each in made["ports"]}
    probes = [made[name] for name in ("livenessProbe", "readinessProbe", "startupProbe") if name in made]
    assert probes
    assert {next(each[kind]["port"] for kind in ("httpGet", "tcpSocket") if kind in each) for each in probes} <= ports.keys()
    words = " ".join(word for command in commands(workload) for word in command)
    assert all(re.search(rf"[:=]{port}\b", words) for port in ports.values())
    for service in (each for each in OBJECTS if each["kind"] == "Service"):
        if service["spec"]["selector"].items() <= labels.items():
            assert {each["targetPort"] for each in service["spec"]["ports"]} <= ports.keys()


def test_addresses_are_those_of_services() -> None:
    services = [each for each in OBJECTS if each["kind"] == "Service"]
    there = {(each["metadata"]["name"], port["port"]) for each in services for port in each["spec"]["ports"]}
    words = " ".join(word for workload in WORKLOADS for command in commands(workload) for word in command)
    found = {(host, int(port)) for host, port in re.findall(r"(thalweg-[a-z]+):(\d+)", words)}
    assert found == {("thalweg-server", 7070), ("thalweg-head", 6379)}
    assert found <= there


def test_networks_are_closed_to_strangers() -> None:
    server, ray = named("NetworkPolicy", "thalweg-server")["spec"], named("NetworkPolicy", "thalweg-ray")["spec"]
    labels = {each["metadata"]["name"]: each["spec"]["template"]["metadata"]["labels"] for each in WORKLOADS}
    assert server["podSelector"]["matchLabels"].items() <= labels["thalweg-server"].items()
    for name in ("thalweg-head", "thalweg-node"):
        assert ray["podSelector"]["matchLabels"].items() <= labels[name].items()
    assert not ray["podSelector"]["matchLabels"].items() <= labels["thalweg-server"].items()
    assert all(rule["from"] for policy in (server, ray) for rule in policy["ingress"])
    ports = {each["name"] for each in container(named("StatefulSet", "thalweg-server"))["ports"]}
    assert {port["port"] for rule in server["ingress"] for port in rule["ports"]} == ports


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_kubectl_puts_them_together() -> None:
    made = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=True)
    objects = list(yaml.safe_load_all(made.stdout))
    assert len(objects) == len(OBJECTS)
    assert {each["metadata"].get("namespace", "thalweg") for each in objects} == {"thalweg"}
    images = {
        each["spec"]["template"]["spec"]["containers"][0]["image"]
        for each in objects
        if each["kind"] in ("StatefulSet", "Deployment")
    }
    assert images == {f"thalweg:{CUSTOMIZED['images'][0]['newTag']}"}
