"""Names and numbers of several servers: real sockets, and real look-ups under files of our own."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from started import ServerProcess
from synthetic import Synthetic

from vitscope.client import AsyncClient, Client, UnavailableError, UsageError
from vitscope.client.addresses import checked_address, target

Serve = Callable[..., ServerProcess]
Listening = Callable[[str], str]

PATIENCE = 60.0


@pytest.fixture(scope="module")
def listening(synthetic: Synthetic, serve: Serve) -> Listening:
    """A server on a host, and its address; skips where there is no such host."""

    def start(host: str) -> str:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind(socket.getaddrinfo(host.strip("[]"), 0)[0][4])
            except OSError as error:
                pytest.skip(f"nothing can listen on {host} here: {error}")
        server = serve(synthetic.path, options=("--listen", f"{host}:0", "--insecure"))
        return f"{host}:{server.address.rpartition(':')[2]}"

    return start


def answered(addresses: str | list[str], times: int = 8) -> set[str]:
    """The names of the index that both clients get."""

    async def ask() -> set[str]:
        async with AsyncClient(addresses) as client:
            return {(await client.index()).name for _ in range(times)}

    with Client(addresses) as client:
        found = {client.index().name for _ in range(times)}
    assert asyncio.run(ask()) == found
    return found


@pytest.mark.parametrize("unknown", ["nowhere.invalid:1", "a..b:1", f"{'x' * 70}.invalid:1"])
def test_one_unknown_name_is_passed_over(synthetic_server: str, unknown: str) -> None:
    assert answered([unknown, synthetic_server]) == {"zoo"}


def test_names_that_are_all_unknown_are_told(synthetic_server: str) -> None:
    none = (
        r"^None of the hosts of nowhere\.invalid:1, nowhere\.invalid:2 is known; "
        r"check the addresses\.$"
    )
    addresses = ["nowhere.invalid:1", "nowhere.invalid:2"]

    async def ask() -> None:
        async with AsyncClient(addresses) as client:
            # Each says so, and the second looks again.
            for _ in range(2):
                with pytest.raises(UnavailableError, match=none):
                    await client.indexes()
            both = await asyncio.gather(client.indexes(), client.index(), return_exceptions=True)
            assert [type(error) for error in both] == [UnavailableError] * 2

    asyncio.run(ask())
    with Client(addresses) as client:
        for _ in range(2):
            with pytest.raises(UnavailableError, match=none):
                client.indexes()
    # One alone is for gRPC to look up.
    one = r"^The host of nowhere\.invalid:1 is not known; check the address\.$"
    with Client("nowhere.invalid:1") as client, pytest.raises(UnavailableError, match=one):
        client.indexes()


def test_an_address_that_is_given_twice_is_not_waited_for() -> None:
    said: list[str] = []

    def ask() -> None:
        addresses = ["nowhere.invalid:1", "nowhere.invalid:1", "nowhere.invalid:2"]
        with (
            Client(addresses, timeout=1_000_000) as client,
            pytest.raises(UnavailableError) as none,
        ):
            client.indexes()
        said.append(str(none.value))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    [sentence] = said
    assert sentence.count("nowhere.invalid:1") == 1


def test_numbers_of_both_kinds_go_together(synthetic_server: str, listening: Listening) -> None:
    other = listening("[::1]")
    assert answered([synthetic_server, other]) == {"zoo"}
    assert answered(["127.0.0.1:1", other]) == {"zoo"}
    assert answered([synthetic_server, "[::1]:1"]) == {"zoo"}


def link_local() -> str:
    """An address of this machine that means something on one interface only."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        number, _, _, scope, _, interface = line.split()
        if scope == "20":
            groups = (number[at : at + 4] for at in range(0, 32, 4))
            return f"[{':'.join(groups)}%{interface}]"
    pytest.skip("no interface has a link-local address")


def test_the_scope_of_an_address_is_kept(listening: Listening) -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("there is no IPv6")
    address = listening(link_local())
    assert answered(address) == {"zoo"}
    assert answered([address, "127.0.0.1:1"]) == {"zoo"}


def test_what_is_dialled() -> None:
    assert target(["127.0.0.1:1", "127.0.0.2:2", "127.0.0.1:1"], 9.0) == (
        "ipv4:127.0.0.1:1,127.0.0.2:2"
    )
    assert target(["127.0.0.1:1", "[::1]:2"], 9.0) == "ipv6:[::ffff:127.0.0.1]:1,[::1]:2"
    # A number stands for an interface by the time that it is dialled.
    assert target(["[fe80::1%1]:1", "[::1]:2"], 9.0) == "ipv6:[fe80::1%251]:1,[::1]:2"


@pytest.mark.parametrize("address", ["[fe80::1%eth0]:1", "[fe80::1%2]:1", "[::ffff:1.2.3.4]:1"])
def test_what_is_an_address(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize("address", ["[fe80::1%]:1", "[fe80::1%a b]:1", "[x]:1", "fe80::1:1:1"])
def test_what_is_none(address: str) -> None:
    with pytest.raises(UsageError, match="is not a server address"):
        checked_address(address)


_UNDER = """
import subprocess, sys
subprocess.run(["mount", "--bind", sys.argv[1], sys.argv[2]], check=True)
print("mounted", flush=True)
del sys.argv[1:3]
"""


@contextmanager
def under(file: Path, place: str, code: str, arguments: Sequence[str]) -> Iterator[list[str]]:
    """A process that reads `file` in `place`, and its arguments; skips where that cannot be.

    Gives the lines that it prints, once it has ended by itself.
    """
    if shutil.which("unshare") is None:
        pytest.skip("nothing can be mounted here")
    command = ["unshare", "-rm", sys.executable, "-c", _UNDER + code, str(file), place, *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        try:
            out, err = run.communicate(timeout=PATIENCE)
        finally:
            run.kill()
    if not out.startswith("mounted\n"):
        pytest.skip(f"nothing can be mounted here: {err}")
    assert (run.returncode, err) == (0, "")
    yield out.splitlines()[1:]


_BOTH = """
import asyncio
from vitscope.client import AsyncClient, Client
with Client(sys.argv[1:]) as client:
    print(client.index().name)
async def ask():
    async with AsyncClient(sys.argv[1:]) as client:
        print((await client.index()).name)
asyncio.run(ask())
"""


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1"])
def test_a_name_of_both_kinds_is_met_by_either(
    listening: Listening, tmp_path: Path, host: str
) -> None:
    port = listening(host).rpartition(":")[2]
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 dual.test\n::1 dual.test\n")
    addresses = [f"dual.test:{port}", "dual.test:1"]
    with under(hosts, "/etc/hosts", _BOTH, addresses) as lines:
        assert lines == ["zoo", "zoo"]


_SILENT = """
import asyncio, threading
from vitscope.client import AsyncClient, Client, UsageError, VitscopeError

async def ask():
    client = AsyncClient(sys.argv[1:], timeout=1000)
    question = asyncio.create_task(client.indexes())
    for _ in range(100):  # the loop goes on meanwhile
        await asyncio.sleep(0.001)
    assert not question.done()
    await client.close()
    try:
        await question
    except VitscopeError as error:
        print(type(error).__name__, error)

asyncio.run(ask())
client = Client(sys.argv[1:], timeout=1000)
threading.Thread(target=client.indexes, daemon=True).start()
client.close()
try:
    client.indexes()
except UsageError as error:
    print(error)
"""


_LATE = """
import asyncio
from vitscope.client import AsyncClient, Client, DeadlineError

async def ask():
    async with AsyncClient(sys.argv[1:], timeout=0.2) as client:
        for _ in range(2):
            try:
                await client.indexes()
            except DeadlineError as error:
                print(error)

asyncio.run(ask())
with Client(sys.argv[1:], timeout=0.2) as client:
    try:
        client.indexes()
    except DeadlineError as error:
        print(error)
"""


@contextmanager
def under_a_silent_name_service(
    folder: Path, code: str, addresses: Sequence[str]
) -> Iterator[list[str]]:
    """As `under`; checks that the name service was asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        try:
            silent.bind(("127.0.0.1", 53))
        except OSError as error:
            pytest.skip(f"no name service can be had here: {error}")
        config = folder / "resolv.conf"
        config.write_text("nameserver 127.0.0.1\noptions timeout:30 attempts:5\n")
        with under(config, "/etc/resolv.conf", code, addresses) as lines:
            yield lines
        assert silent.recv(4096)


def test_names_that_are_not_known_in_time_may_be_later(tmp_path: Path) -> None:
    late = (
        "The look-up of one.example:1, two.example:1 did not end in time; allow more with a longer "
        "timeout."
    )
    addresses = ["one.example:1", "two.example:1"]
    with under_a_silent_name_service(tmp_path, _LATE, addresses) as lines:
        assert lines == [late] * 3


def test_a_name_service_that_is_silent_holds_up_nobody(tmp_path: Path) -> None:
    """Neither the loop, nor who closes a client, nor the end of the process."""
    addresses = ["one.example:1", "two.example:1"]
    with under_a_silent_name_service(tmp_path, _SILENT, addresses) as lines:
        assert lines == [
            "CancelledError The call to one.example:1, two.example:1 was cancelled before its "
            "answer.",
            "This client is closed; make another.",
        ]
