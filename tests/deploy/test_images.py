"""The images: what their Dockerfiles build, step by step, and how that runs and ends."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from deploy.manifests import (
    compose_service,
    config_map,
    container_spec,
    folder_of_volume,
    kubernetes,
)
from images import ROOT, Container, Sandbox, steps_of
from images import Image as Built
from PIL import Image

REAL = os.environ.get("VITSCOPE_IMAGES") == "1"
"""Whether the indexer's image is built whole: gigabytes of torch."""
DOCKERFILES = [ROOT / "server" / "Dockerfile", ROOT / "indexer" / "Dockerfile"]
Start = Callable[..., Container]


@pytest.fixture
def start(sandbox: Sandbox, server_image: Built) -> Iterator[Start]:
    """Starts containers of the server's image, and ends them."""
    started: list[Container] = []

    def begin(
        arguments: Sequence[str],
        volumes: Mapping[str, Path],
        environment: Mapping[str, str] | None = None,
    ) -> Container:
        started.append(
            sandbox.start(server_image, arguments, volumes=volumes, environment=environment)
        )
        return started[-1]

    yield begin
    for container in started:
        container.close()


def test_the_two_files_differ_where_they_have_to() -> None:
    first, second = map(steps_of, DOCKERFILES)
    own = {"ENV", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "LABEL", "ARG"}

    def common(steps: Sequence[Any]) -> list[Any]:
        texts = [(each.name, each.flags, each.text) for each in steps if each.name not in own]
        return [
            each for each in texts if "serve.toml" not in each[2] and "install --dir" not in each[2]
        ]

    assert common(first) == common(second)


def test_the_wheel_of_a_build_is_the_wheel_of_a_checkout(
    sandbox: Sandbox, server_image: Built, wheel: Path
) -> None:
    """`.dockerignore` keeps nothing back that is needed, and lets nothing else in."""
    [built] = sandbox.built("server", "wheel").glob("dist/*.whl")
    assert built.name == wheel.name
    mine, theirs = (
        {each.filename: each.CRC for each in zipfile.ZipFile(path).infolist()}
        for path in (built, wheel)
    )
    assert mine == theirs
    assert not [name for name in mine if "Dockerfile" in name or "__pycache__" in name]


def test_the_server_image_has_no_torch(sandbox: Sandbox, server_image: Built) -> None:
    code = (
        "import sys; from importlib.util import find_spec; import vitscope.server.app, faiss; "
        "print([name for name in sys.argv[1:] if find_spec(name)])"
    )
    absent = ["torch", "torchvision", "timm", "numba", "pyarrow", "pandas", "zarr"]
    done = sandbox.execute(server_image, ["python", "-c", code, *absent, "grpc"])
    assert (done.stdout, done.stderr) == ("['grpc']\n", "")
    done = sandbox.execute(server_image, ["python", "-m", "pip", "check"])
    assert done.returncode == 0, done.stdout
    # What is served is owned by another user than serves.
    assert sandbox.execute(server_image, ["id", "-u"]).stdout == "10001\n"
    code = "import os, vitscope.server as it; print(os.access(it.__path__[0], os.W_OK))"
    assert sandbox.execute(server_image, ["python", "-c", code]).stdout == "False\n"
    assert server_image.labels["org.opencontainers.image.version"] == "1.2.3"


def test_the_server_image_serves_and_ends(
    sandbox: Sandbox, server_image: Built, start: Start, indexes: Path
) -> None:
    health = server_image.health
    assert sandbox.execute(server_image, health).returncode == 1
    container = start(["my-index", "--insecure"], {"/indexes": indexes})
    assert container.line() == "Serving on 0.0.0.0:50051\n"
    done = container.execute(health)
    assert (done.returncode, done.stdout) == (0, "127.0.0.1:50051 serves.\n")
    # Another container asks by the port that the image names.
    [port] = server_image.ports
    asked = ["vitscope", "top-images", "--server", f"127.0.0.1:{port}", "-k", "3"]
    done = sandbox.execute(server_image, [*asked, "--layer", "blocks.0.mlp", "--channel", "4"])
    assert (done.returncode, done.stdout.count("\n")) == (0, 4)
    assert container.stop() == 0
    assert sandbox.execute(server_image, health).returncode == 1


def test_the_server_image_wants_tls_or_to_be_told(start: Start, indexes: Path) -> None:
    container = start(["my-index"], {"/indexes": indexes})
    assert container.wait() == 6
    assert "give --tls-cert and --tls-key, or --insecure" in container.errors()


def test_workers_and_metrics_run_on_a_read_only_root(
    sandbox: Sandbox, server_image: Built, start: Start, indexes: Path
) -> None:
    options = ["my-index", "--insecure", "--workers", "2", "--metrics", "0.0.0.0:9100"]
    container = start(options, {"/indexes": indexes})
    assert container.line() == "Serving on 0.0.0.0:50051\n"
    assert container.execute([*server_image.health, "my-index"]).returncode == 0
    assert "vitscope_calls_in_hand{" in metrics(container)
    assert container.stop() == 0


def metrics(container: Container, port: int = 9100) -> str:
    code = (
        "import time, urllib.request as it\n"
        f"get = lambda: it.urlopen('http://127.0.0.1:{port}/metrics').read().decode()\n"
        # Told every second.
        "while 'vitscope_calls_in_hand{' not in (text := get()): time.sleep(0.05)\n"
        "print(text)"
    )
    return container.execute(["python", "-c", code]).stdout


def test_process_1_ends_at_a_signal_that_comes_while_it_starts(
    start: Start, indexes: Path, tmp_path: Path
) -> None:
    """The system ends process 1 by no signal that it has no handler for."""
    config = tmp_path / "config"
    config.mkdir()
    # Who opens it waits for a writer.
    os.mkfifo(config / "serve.toml")
    container = start(["my-index"], {"/indexes": indexes, "/etc/vitscope": config})
    while True:
        with suppress(OSError):
            # Once somebody reads, who then waits for what is written.
            writer = os.open(config / "serve.toml", os.O_WRONLY | os.O_NONBLOCK)
            break
        assert container.runs
        time.sleep(0.01)
    assert container.stop() == 143
    os.close(writer)


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    """What both examples say has to be there, as the image's user reads it."""
    folder = tmp_path / "trust"
    folder.mkdir()
    authority = Authority(folder, "ca")
    pair = authority.issue("tls", hosts=["vitscope"])
    authority.file.rename(folder / "ca.crt")
    assert (pair.certificate.name, pair.key.name) == ("tls.crt", "tls.key")
    (folder / "tokens").write_text(f"ada sha256:{'0' * 64}\n")
    for path in folder.iterdir():
        os.chown(path, 10001, 10001)
    return folder


def test_the_compose_file_serves(
    server_image: Built, start: Start, indexes: Path, trust: Path
) -> None:
    service = compose_service("server")
    sources = {"./indexes": indexes, "./trust": trust}
    volumes = {each["target"]: sources[each["source"]] for each in service["volumes"]}
    container = start(service["command"], volumes, service["environment"])
    assert container.line() == "Serving on 0.0.0.0:50051\n"
    kind, *test = service["healthcheck"]["test"]
    assert kind == "CMD"
    done = container.execute(test)
    assert (done.returncode, done.stderr) == (0, "")
    # And not by whom it has nothing to do with.
    assert container.execute(server_image.health).returncode == 1
    assert metrics(container)
    assert container.stop() == 0


def test_the_kubernetes_manifest_serves(
    start: Start, indexes: Path, trust: Path, tmp_path: Path
) -> None:
    [spec] = container_spec()
    config = tmp_path / "config"
    config.mkdir()
    for name, text in config_map("vitscope").items():
        (config / name).write_text(text)
    sources = {"vitscope-indexes": indexes, "vitscope": config, "vitscope-trust": trust}
    volumes = {
        each["mountPath"]: sources[folder_of_volume(each["name"])]
        for each in spec["volumeMounts"]
        if each["name"] != "tmp"
    }
    container = start(
        spec["args"], volumes, {"PYTHON_CPU_COUNT": spec["resources"]["limits"]["cpu"]}
    )
    assert container.line() == "Serving on 0.0.0.0:50051\n"
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        done = container.execute(spec[probe]["exec"]["command"])
        assert (done.returncode, done.stderr) == (0, "")
    annotations = kubernetes("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert metrics(container, int(annotations["prometheus.io/port"]))
    done = container.execute(spec["lifecycle"]["preStop"]["exec"]["command"])
    assert (done.returncode, done.stderr) == (0, "")
    assert container.stop() == 0


def test_the_indexer_image_runs(sandbox: Sandbox, indexes: Path, tmp_path: Path) -> None:
    """With torch where `VITSCOPE_IMAGES=1` says so, or else with the store alone."""
    extras = {} if REAL else {"EXTRAS": "store,faiss-cpu"}
    image = sandbox.build(ROOT / "indexer" / "Dockerfile", **extras)
    kept = {"/indexes": indexes, "/cache": tmp_path / "cache"}
    assert list(kept) == image.volumes
    pictures = tmp_path / "pictures"
    for folder in (kept["/cache"], pictures):
        folder.mkdir()
    for number in range(5):
        Image.new("RGB", (64, 48), (50 * number, 90, 7)).save(pictures / f"{number}.png")
    for folder in kept.values():
        os.chown(folder, 10001, 10001)
    commands = [["verify", "--deep", "my-index"]]
    if REAL:
        model = ("--model", "vit_tiny_patch16_224", "--random-weights")
        commands.append(["index", *model, "--data", "/pictures", "--out", "own"])
        commands.append(["verify", "--deep", "own"])
    for command in commands:
        volumes = {**kept, "/pictures": pictures}
        container = sandbox.start(image, command, volumes=volumes, writable=list(kept))
        # The first one compiles the reduction.
        assert container.wait(600) == 0, container.errors()
    # What Numba compiles is kept for the next run.
    assert bool(list(kept["/cache"].rglob("*.nbi"))) == REAL
