"""The compose file and the Kubernetes manifest as values."""

from __future__ import annotations

from typing import Any

import yaml
from images import ROOT

COMPOSE = ROOT / "docs" / "deploy" / "compose.yaml"
KUBERNETES = ROOT / "docs" / "deploy" / "kubernetes.yaml"


def compose_service(name: str) -> Any:
    return yaml.safe_load(COMPOSE.read_text())["services"][name]


def all_kubernetes() -> list[Any]:
    return list(yaml.safe_load_all(KUBERNETES.read_text()))


def kubernetes(kind: str) -> Any:
    """The one object of a kind."""
    [found] = [each for each in all_kubernetes() if each["kind"] == kind]
    return found


def pod() -> Any:
    """What the Deployment says of a pod."""
    return kubernetes("Deployment")["spec"]["template"]["spec"]


def container_spec() -> Any:
    return pod()["containers"]


def config_map(name: str) -> dict[str, str]:
    found = kubernetes("ConfigMap")
    assert found["metadata"]["name"] == name
    data: dict[str, str] = found["data"]
    return data


def folder_of_volume(name: str) -> str:
    """The claim, the config map or the secret that a volume of the pod is."""
    [volume] = [each for each in pod()["volumes"] if each["name"] == name]
    of = {
        "persistentVolumeClaim": "claimName",
        "configMap": "name",
        "secret": "secretName",
    }
    [(kind, said)] = [(kind, said) for kind, said in volume.items() if kind in of]
    return str(said[of[kind]])
