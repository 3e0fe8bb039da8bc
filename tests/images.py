"""Images built from Dockerfiles and run, without Docker: by namespaces, over this machine's system.

What a Dockerfile's base image would bring, this machine's own `/usr` and Python stand in for; all
else is done as the file has it: its stages, copies, mounts, users, variables, and its process as
number 1, on a file system that is read-only but for volumes. Takes root, as Docker does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PYTHON = Path(sys.base_prefix)
# Packages of a site may lie under /opt.
_OF_THE_MACHINE = (
    _PYTHON,
    Path("/usr"),
    *(each for each in Path("/").glob("opt/*") if each.is_dir()),
)
_KERNEL = ("/proc", "/dev", "/sys")
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64")
_LOOPBACK_UP = """
import fcntl, socket, struct, sys
with socket.socket() as it:
    fcntl.ioctl(it, 0x8914, struct.pack("16sH22x", b"lo", 1))
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction of a Dockerfile."""

    name: str
    flags: tuple[str, ...]
    """As written, such as `--from=base`."""
    text: str

    @property
    def words(self) -> list[str]:
        """Of the JSON form, or of a line."""
        if self.text.startswith("["):
            words: list[str] = json.loads(self.text)
            return words
        return shlex.split(self.text)

    def flag(self, name: str, default: str = "") -> str:
        """The value of `--name=…`."""
        found = [each for each in self.flags if each.startswith(f"--{name}=")]
        return found[0].partition("=")[2] if found else default


def steps_of(dockerfile: Path) -> list[Step]:
    """The instructions in their order."""
    lines = dockerfile.read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    steps = []
    for line in text.replace("\\\n", " ").splitlines():
        if match := re.fullmatch(r"([A-Z]+)((?:\s+--\S+)*)\s+(.+)", line.strip()):
            steps.append(Step(match[1], tuple(match[2].split()), match[3].strip()))
        else:
            assert not line.strip(), line
    return steps


def context_of(folder: Path) -> Path:
    """A copy of what `.dockerignore` lets a build see, in the new `folder`."""
    shown, hidden = [], []
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        # The few forms that the file has.
        if line.startswith("!"):
            shown.append(line[1:])
        elif line.startswith("**/"):
            hidden.append(line[3:])
        else:
            assert line.startswith("#") or line in ("", "*"), line
    folder.mkdir()
    for name in shown:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*hidden))
        else:
            shutil.copy2(ROOT / name, folder)
    return folder


@dataclass(frozen=True, slots=True)
class Image:
    """What a Dockerfile makes: a folder, and how to run it."""

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    entrypoint: Sequence[str] = ()
    health: Sequence[str] = ()
    stop_signal: str = ""
    ports: Sequence[str] = ()
    volumes: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


class Sandbox:
    """Builds and runs images where nobody else sees their mounts and ports; a context manager."""

    def __init__(self, scratch: Path) -> None:
        """Raises `OSError` where this machine does not let it."""
        self._scratch = scratch
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--net", sys.executable, "-c", _LOOPBACK_UP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            _, said = self._process.communicate()
            raise OSError(said.strip())
        self._built: dict[tuple[str, str], Path] = {}
        self._context = context_of(scratch / "context")
        self._python = self._stand_in(scratch / "python")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()
        shutil.rmtree(self._scratch)

    def build(self, dockerfile: Path, **arguments: str) -> Image:
        """The last stage of a Dockerfile; raises where a step fails."""
        stages: dict[str, Image] = {}
        image = self._python
        given: dict[str, str] = {}
        for step in steps_of(dockerfile):
            match step.name:
                case "FROM":
                    base, _, name = step.text.partition(" AS ")
                    root = self._scratch / f"{dockerfile.parent.name}-{len(stages)}"
                    given = {}
                    image = self._stage(stages.get(base, self._python), root)
                case "ARG":
                    name, _, default = step.text.partition("=")
                    given[name] = arguments.get(name, default)
                case "COPY":
                    source = stages[step.flag("from")].root if step.flag("from") else self._context
                    _copy(source, step.words, image)
                case "RUN":
                    self._run(step, image, given, stages)
                case "ENV" | "LABEL":
                    known = {**given, **image.environment}
                    texts = (string.Template(word).substitute(known) for word in step.words)
                    pairs = dict(text.split("=", 1) for text in texts)
                    if step.name == "ENV":
                        image = replace(image, environment={**image.environment, **pairs})
                    else:
                        image = replace(image, labels={**image.labels, **pairs})
                case _:
                    image = _described(image, step)
            if step.name == "FROM":
                current = name or str(len(stages))
            stages[current] = image
        self._built |= {(dockerfile.parent.name, name): each.root for name, each in stages.items()}
        return image

    def built(self, room: str, stage: str) -> Path:
        """The folder of a stage of the room's Dockerfile."""
        return self._built[room, stage]

    def _stage(self, base: Image, root: Path) -> Image:
        subprocess.run(["cp", "--archive", base.root, root], check=True)
        for path in _OF_THE_MACHINE:
            self.call("mount", "--bind", str(path), f"{root}{path}")
            self.call("mount", "-o", "remount,bind,ro", f"{root}{path}")
        for name in _KERNEL:
            self.call("mount", "--rbind", name, f"{root}{name}")
        return replace(base, root=root)

    def _stand_in(self, root: Path) -> Image:
        """For the base image."""
        root.mkdir()
        for place in (*_KERNEL, "/root", *map(str, _OF_THE_MACHINE)):
            Path(f"{root}{place}").mkdir(parents=True, exist_ok=True)
        (root / "tmp").mkdir(mode=0o1777)
        (root / "tmp").chmod(0o1777)
        for name in _LINKS:
            if Path("/", name).is_symlink():
                (root / name).symlink_to(os.readlink(f"/{name}"))
        shutil.copytree("/etc", root / "etc", symlinks=True)
        for name in (".config/pip", ".pip"):
            if (Path.home() / name).is_dir():
                shutil.copytree(Path.home() / name, root / "root" / name)
        path = f"{_PYTHON}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return Image(root, {"PATH": path})

    def call(self, *command: str) -> None:
        """Run a command of this machine among the sandbox's mounts."""
        enter = ["nsenter", f"--target={self._process.pid}", "--mount"]
        done = subprocess.run([*enter, *command], capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout, done.stderr)

    def _run(
        self, step: Step, image: Image, given: Mapping[str, str], stages: Mapping[str, Image]
    ) -> None:
        mounted = []
        for flag in step.flags:
            how = dict(each.split("=", 1) for each in flag.removeprefix("--mount=").split(","))
            target = Path(f"{image.root}{how['target']}")
            if how["type"] == "cache":
                source = Path.home() / ".cache" / "pip"
                source.mkdir(parents=True, exist_ok=True)
            else:
                above = stages[how["from"]].root if "from" in how else self._context
                source = above / how.get("source", "").lstrip("/")
            if source.is_dir():
                target.mkdir(parents=True, exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.touch()
            self.call("mount", "--bind", str(source), str(target))
            mounted.append(target)
        # Where packages come from is the builder's business.
        site = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        environment = {"HOME": "/root", **site, **given, **image.environment}
        inside = _inside(image, ["/bin/sh", "-c", step.text], environment)
        self.call(*inside)
        for target in mounted:
            self.call("umount", str(target))

    def start(
        self,
        image: Image,
        arguments: Sequence[str],
        *,
        volumes: Mapping[str, Path],
        writable: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Container:
        """Run the image with arguments behind its entrypoint, its root read-only.

        `volumes` are folders of this machine by their paths inside, read-only but for `writable`.
        """
        root = str(image.root)
        script = ["set -e", f"mount --rbind {root} {root}"]
        for target, source in volumes.items():
            place = f"{root}{target}"
            Path(place).mkdir(parents=True, exist_ok=True)
            script.append(f"mount --bind {shlex.quote(str(source))} {place}")
            if target not in writable:
                script.append(f"mount -o remount,bind,ro {place}")
        script.append(f"mount -t tmpfs tmpfs {root}/tmp")
        script.append(f"mount -t proc proc {root}/proc")
        script.append(f"mount -o remount,bind,ro {root}")
        command = [*image.entrypoint, *arguments]
        told = {**image.environment, **(environment or {})}
        script.append(f"exec {shlex.join(_inside(image, command, told))}")
        return Container(self, image, "\n".join(script))

    def enter(self) -> list[str]:
        """Begins a command among the sandbox's mounts and on its network."""
        return ["nsenter", f"--target={self._process.pid}", "--mount", "--net"]

    def execute(self, image: Image, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in the image, as in a container of its own on the same network."""
        inside = _inside(image, command, image.environment)
        return subprocess.run([*self.enter(), *inside], capture_output=True, text=True, timeout=120)


class Container:
    """A running image; ended by `close`."""

    def __init__(self, sandbox: Sandbox, image: Image, script: str) -> None:
        self._image = image
        unshare = ["unshare", "--mount", "--pid", "--fork"]
        self._process = subprocess.Popen(
            [*sandbox.enter(), *unshare, "sh", "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """The next line of its output."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    @property
    def first(self) -> int:
        """The number here of its process 1."""
        pid = self._process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def execute(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `docker exec` and probes do."""
        enter = ["nsenter", f"--target={self.first}", "--mount", "--net", "--pid"]
        inside = _inside(self._image, command, self._image.environment)
        return subprocess.run([*enter, *inside], capture_output=True, text=True, timeout=120)

    def stop(self) -> int:
        """Send the image's stop signal to its process 1, and give the exit code."""
        os.kill(self.first, signal.Signals[self._image.stop_signal])
        return self.wait()

    def wait(self, seconds: float = 60) -> int:
        """Its exit code."""
        return self._process.wait(seconds)

    def errors(self) -> str:
        """What it wrote to stderr, once it has ended."""
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def close(self) -> None:
        """End it in any case."""
        # It may end by itself at this moment. All others end with process 1.
        with suppress(IndexError, OSError):
            os.kill(self.first, signal.SIGKILL)
        self._process.communicate()


def _inside(image: Image, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """A command as the image's user, in its folder, seeing nothing but the image."""
    chroot = ["chroot", f"--userspec={image.user}", "--groups=", str(image.root)]
    variables = [f"{name}={value}" for name, value in environment.items()]
    return [
        *chroot,
        *("/usr/bin/env", "-i", *variables),
        *("/bin/sh", "-c", 'cd "$0" && exec "$@"', image.folder, *command),
    ]


def _copy(source: Path, words: Sequence[str], image: Image) -> None:
    *names, target = words
    place = image.root / os.path.join(image.folder, target).lstrip("/")
    for name in names:
        path = source / name.lstrip("/")
        # A folder's contents go into the target, a file into it where it is a folder.
        if path.is_dir():
            shutil.copytree(path, place, symlinks=True, dirs_exist_ok=True)
        else:
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place)


def _described(image: Image, step: Step) -> Image:
    """The image with what an instruction says of how it is run."""
    match step.name:
        case "WORKDIR":
            (image.root / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            return replace(image, folder=step.text)
        case "USER":
            return replace(image, user=step.text)
        case "ENTRYPOINT":
            assert step.text.startswith("["), "a shell would be process 1, and pass no signal on"
            return replace(image, entrypoint=step.words)
        case "HEALTHCHECK":
            command = step.text.removeprefix("CMD ")
            return replace(image, health=Step("CMD", (), command).words)
        case "STOPSIGNAL":
            return replace(image, stop_signal=step.text)
        case "EXPOSE":
            return replace(image, ports=step.words)
        case "VOLUME":
            return replace(image, volumes=step.words)
    raise AssertionError(f"{step.name} is not known here")
