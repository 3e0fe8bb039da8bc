"""The Dockerfiles, the compose file and the Kubernetes manifest: well formed, and of one mind."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from deploy.manifests import (
    COMPOSE,
    all_kubernetes,
    compose_service,
    config_map,
    container_spec,
    folder_of_volume,
    kubernetes,
    pod,
)
from images import ROOT, steps_of
from started import VITSCOPE

from vitscope.client.commands import health
from vitscope.indexer.commands import index

ROOMS = ("server", "indexer")
BEYOND_GRACE = 5.25
"""Seconds that an end may take besides: the notice before, and what workers get after."""


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@pytest.mark.parametrize("room", ROOMS)
def test_dockerfiles_are_well_formed(room: str) -> None:
    # What pip keeps goes to a mount.
    command = [tool("hadolint"), "--ignore", "DL3042", str(ROOT / room / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_compose_file_is_one() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", [each["kind"] for each in all_kubernetes()])
def test_the_manifest_is_one(kind: str) -> None:
    for version in ("1.29", kubernetes_validate.latest_version()):
        kubernetes_validate.validate(kubernetes(kind), version, strict=True)


def in_force(
    arguments: Sequence[str], config: Path, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What `vitscope serve` makes of them and of a file that it is told of by the environment."""
    done = subprocess.run(
        [str(VITSCOPE), "serve", *arguments, "--print-config"],
        env={**os.environ, "VITSCOPE_SERVE_CONFIG": str(config), **(environment or {})},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return tomllib.loads(done.stdout)


@pytest.fixture
def composed(tmp_path: Path) -> dict[str, Any]:
    """The options of the compose file's server."""
    [line] = [step.text for step in steps_of(ROOT / "server" / "Dockerfile") if "echo" in step.text]
    config = tmp_path / "serve.toml"
    config.write_text(line.partition("echo '")[2].partition("'")[0])
    service = compose_service("server")
    return in_force(service["command"], config, service["environment"])


@pytest.fixture
def applied(tmp_path: Path) -> dict[str, Any]:
    """Those of the manifest."""
    [container] = container_spec()
    config = tmp_path / "serve.toml"
    config.write_text(config_map("vitscope")["serve.toml"])
    [place] = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "config"]
    arguments = [each.replace(place, str(tmp_path)) for each in container["args"]]
    return in_force(arguments, config)


def test_both_serve_in_the_same_way(composed: dict[str, Any], applied: dict[str, Any]) -> None:
    files = {"tls_cert", "tls_key", "tokens"}
    for each in files:
        assert Path(composed.pop(each)).name == Path(applied.pop(each)).name
    assert composed == applied


def seconds(text: str) -> float:
    assert text.endswith("s")
    return float(text[:-1])


def test_calls_in_flight_have_their_grace(
    composed: dict[str, Any], applied: dict[str, Any]
) -> None:
    service = compose_service("server")
    assert composed["grace"] + BEYOND_GRACE < seconds(service["stop_grace_period"])
    [container] = container_spec()
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    needed = float(pause) + applied["grace"] + BEYOND_GRACE
    assert needed < pod()["terminationGracePeriodSeconds"]


def test_ports_are_the_same_everywhere(composed: dict[str, Any], applied: dict[str, Any]) -> None:
    [exposed] = [
        step.text for step in steps_of(ROOT / "server" / "Dockerfile") if step.name == "EXPOSE"
    ]
    assert composed["listen"] == applied["listen"] == f"0.0.0.0:{exposed}"
    service = compose_service("server")
    [published] = service["ports"]
    outside, _, inside = published.partition(":")
    assert inside == exposed
    first, last = map(int, outside.split("-"))
    assert last - first + 1 == service["deploy"]["replicas"]
    [container] = container_spec()
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"grpc": int(exposed), "metrics": int(applied["metrics"].split(":")[1])}
    deployment = kubernetes("Deployment")["spec"]["template"]
    assert deployment["metadata"]["annotations"]["prometheus.io/port"] == str(ports["metrics"])
    [served] = kubernetes("Service")["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (int(exposed), "grpc")
    allowed = [each["ports"] for each in kubernetes("NetworkPolicy")["spec"]["ingress"]]
    assert allowed == [[{"port": name}] for name in ports]


def test_selectors_find_the_pods() -> None:
    spec = kubernetes("Deployment")["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert kubernetes("Service")["spec"]["selector"] == labels
    assert kubernetes("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels


def test_servers_only_read() -> None:
    service = compose_service("server")
    assert service["read_only"]
    assert all(each["read_only"] for each in service["volumes"])
    [container] = container_spec()
    assert container["securityContext"]["readOnlyRootFilesystem"]
    written = [each["name"] for each in container["volumeMounts"] if not each.get("readOnly")]
    assert written == ["tmp"]
    [claim] = [each for each in pod()["volumes"] if "persistentVolumeClaim" in each]
    assert claim["persistentVolumeClaim"]["readOnly"]
    assert folder_of_volume("indexes") == kubernetes("PersistentVolumeClaim")["metadata"]["name"]
    # The indexer writes where its image has volumes, and nowhere else.
    image = {step.name: step for step in steps_of(ROOT / "indexer" / "Dockerfile")}
    volumes = compose_service("indexer")["volumes"]
    kept = [each["target"] for each in volumes if not each.get("read_only")]
    assert kept == image["VOLUME"].words


def test_files_that_are_named_are_mounted(
    composed: dict[str, Any], applied: dict[str, Any]
) -> None:
    service = compose_service("server")
    [container] = container_spec()
    mounts = [each["target"] for each in service["volumes"]]
    places = [each["mountPath"] for each in container["volumeMounts"]]
    for options, known in ((composed, mounts), (applied, places)):
        for name in ("tls_cert", "tls_key", "tokens"):
            assert str(Path(options[name]).parent) in known
    for test, options in (
        (service["healthcheck"]["test"][1:], composed),
        (container["livenessProbe"]["exec"]["command"], applied),
    ):
        asked = parsed(health, test[2:])
        assert Path(asked.tls_ca).parent == Path(options["tls_cert"]).parent


def test_images_run_as_the_user_whom_the_manifest_names() -> None:
    users = set()
    for room in ROOMS:
        users |= {step.text for step in steps_of(ROOT / room / "Dockerfile") if step.name == "USER"}
    context = pod()["securityContext"]
    assert users == {f"{context['runAsUser']}:{context['runAsGroup']}"}
    assert context["fsGroup"] == context["runAsGroup"]


def parsed(command: Any, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_probes_end_before_they_are_ended() -> None:
    [container] = container_spec()
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        program, command, *arguments = probe["exec"]["command"]
        assert (program, command) == ("vitscope", "health")
        assert parsed(health, arguments).timeout < probe["timeoutSeconds"]
    check = compose_service("server")["healthcheck"]
    assert parsed(health, check["test"][3:]).timeout < seconds(check["timeout"])
    [step] = [
        step for step in steps_of(ROOT / "server" / "Dockerfile") if step.name == "HEALTHCHECK"
    ]
    assert parsed(health, []).timeout < seconds(step.flag("timeout"))


def test_cores_are_the_limit() -> None:
    service = compose_service("server")
    limit = service["deploy"]["resources"]["limits"]["cpus"]
    assert service["environment"]["PYTHON_CPU_COUNT"] == limit
    [container] = container_spec()
    [variable] = container["env"]
    assert variable["name"] == "PYTHON_CPU_COUNT"
    assert variable["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    # Since Python 3.13 the variable is looked at.
    [base] = {step.text for step in steps_of(ROOT / "server" / "Dockerfile")[:1]}
    assert base.startswith("python:3.13-")


def test_the_indexer_is_given_options_that_it_has() -> None:
    command, *arguments = compose_service("indexer")["command"]
    assert command == "index"
    asked = parsed(index, arguments)
    mounts = [each["target"] for each in compose_service("indexer")["volumes"]]
    assert str(asked.data) in mounts
    assert str(Path(asked.checkpoint).parent) in mounts
    # In the folder where images begin.
    assert not asked.out.is_absolute()
    assert str(asked.out) in compose_service("server")["command"]
