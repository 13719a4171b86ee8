"""List the fixtures that start servers. Tests without them are fast: `tests/conftest.py` marks them for `make test-fast`."""

# A test needs a server if it requests one of these fixtures, directly or through another fixture.
# A test that starts a server in its own body requests `own_servers`.
SERVER_FIXTURES = frozenset({"stack", "prefect_api", "site", "own_servers"})
