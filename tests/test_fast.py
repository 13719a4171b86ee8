"""`make test-fast` runs the tests that need no server. `tests/conftest.py` finds them by the fixtures that they request."""

import inspect
import re
import socket

import pytest

from tests.fast import SERVER_FIXTURES


def fixtures_that_start_servers(item: pytest.Item) -> list[str]:
    """Return the fixtures of a test whose code starts a stand-in."""
    found = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009 - pytest has no public name for it
    return [
        name
        for name, definitions in found.items()
        if any(re.search(r"\b(Stack|Site|receiver)\(", inspect.getsource(one.func)) for one in definitions)
    ]


@pytest.mark.slow
def test_no_fast_test_requests_a_fixture_that_starts_a_server(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        if item.get_closest_marker("fast"):
            assert not SERVER_FIXTURES & set(item.fixturenames), item.nodeid
            assert not fixtures_that_start_servers(item), item.nodeid


def test_every_other_test_requests_a_server_fixture(request: pytest.FixtureRequest) -> None:
    for item in request.session.items:
        assert item.get_closest_marker("fast") or SERVER_FIXTURES & set(item.fixturenames), item.nodeid


def test_a_fast_test_that_starts_a_server_itself_fails() -> None:
    with socket.socket() as server, pytest.raises(RuntimeError, match="request a server fixture, or `own_servers`"):
        server.bind(("127.0.0.1", 0))


def test_a_test_that_requests_own_servers_may_start_one(own_servers: None) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
