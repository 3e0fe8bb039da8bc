import grpc
import pytest

from vitscope.client import errors
from vitscope.client.errors import EXCEPTIONS, VitscopeError, from_status, rpc_errors

NOT_OK = sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK}, key=lambda code: code.name)


def test_every_status_that_is_not_ok_has_its_exception() -> None:
    assert set(EXCEPTIONS) == set(NOT_OK)
    assert len(EXCEPTIONS) == 16


@pytest.mark.parametrize("code", NOT_OK)
@pytest.mark.parametrize("details", ["", "k is 0;\n give  1 to 5"])
def test_every_status_becomes_one_sentence(code: grpc.StatusCode, details: str) -> None:
    error = from_status(code, details, "127.0.0.1:1")
    assert type(error) is EXCEPTIONS[code]
    assert str(error).endswith(".")
    assert "\n" not in str(error)


def test_a_refusal_keeps_the_servers_sentence() -> None:
    error = from_status(grpc.StatusCode.INVALID_ARGUMENT, "k is 0; give 1 to 5.", "127.0.0.1:1")
    assert str(error) == "k is 0; give 1 to 5."
    assert error.exit_code == 2


def test_silence_names_the_address_and_the_mend() -> None:
    error = from_status(grpc.StatusCode.UNAVAILABLE, "failed to connect", "10.0.0.1:9")
    assert "10.0.0.1:9" in str(error)
    assert "`vitscope serve INDEX --listen 10.0.0.1:9`" in str(error)
    assert error.exit_code == 5


def test_exit_codes_are_the_documented_ones() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, VitscopeError)
    ]
    assert {kind.exit_code for kind in kinds} == {2, 4, 5}


def test_the_tree_in_the_docstring_names_every_exception() -> None:
    kinds = [name for name in vars(errors) if name.endswith("Error")]
    drawn = set(str(errors.__doc__).split())
    assert set(kinds) <= drawn


def test_an_rpc_error_without_a_status_is_converted_too() -> None:
    with pytest.raises(errors.ServerError, match=r"no status\.$"), rpc_errors("127.0.0.1:1"):
        raise grpc.RpcError("no status")


def test_other_errors_pass_through() -> None:
    with pytest.raises(KeyError), rpc_errors("127.0.0.1:1"):
        raise KeyError("ours")
