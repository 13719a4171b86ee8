"""`python -m blocks.register` makes all blocks from the environment or none, and never shows a secret."""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import BlockDocument
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from prefect_sqlalchemy import SqlAlchemyConnector
from sqlalchemy import make_url

from blocks import GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from blocks.register import BLOCKS, BadValue, main, register, sqlalchemy_connector
from local.servers.stack import Stack
from tests.receivers import web_page

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary7Qx"
NAMES = {kind: name for kind, (name, _, _) in BLOCKS.items()}
VARIABLES = (
    "LAKE_BUCKET",
    "POSTGRES_URL",
    "GCP_SERVICE_ACCOUNT_FILE",
    "GCP_SERVICE_ACCOUNT_INFO",
    "GOOGLE_CLOUD_PROJECT",
)

Environment = dict[str, str]

pytestmark = pytest.mark.usefixtures("prefect_api")


def documents(secrets: str = "hidden") -> dict[str, dict[str, Any]]:
    """Return the values of this project's blocks by type, as the UI shows them or with their secrets."""

    async def read() -> list[BlockDocument]:
        async with get_client() as client:
            return await client.read_block_documents(include_secrets=secrets == "included")

    found = [block.dict(json_compatible=True) for block in asyncio.run(read())]
    return {kind: block for kind, name in NAMES.items() for block in found if block["name"] == name}


@pytest.fixture
def new_server(stack: Stack) -> None:
    """Remove this project's blocks from the session's in-process API."""

    async def delete(ids: list[str]) -> None:
        async with get_client() as client:
            for block in ids:
                await client.delete_block_document(UUID(block))

    if found := documents():
        asyncio.run(delete([block["id"] for block in found.values()]))


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    """Return the content of a service account's key file."""
    account = json.loads(Path(stack.env["GOOGLE_APPLICATION_CREDENTIALS"]).read_text("utf-8"))
    return json.dumps(account | {"private_key_id": CANARY, "project_id": "of-the-key"})


@pytest.fixture
def well_formed(stack: Stack) -> Environment:
    return {"LAKE_BUCKET": "taxi-lake", "POSTGRES_URL": stack.env["POSTGRES_URL"]}


@pytest.fixture
def no_machine_credentials(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the application default credentials. The tests' home has none of gcloud's either."""
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("NO_GCE_CHECK", "true")


def set_environment(monkeypatch: pytest.MonkeyPatch, environment: Environment) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("given", ["by path", "by content", "not at all"])
def test_the_three_blocks_are_made_and_usable_with_a_key(given, new_server, well_formed, key, tmp_path, stack):
    file = tmp_path / "key.json"
    file.write_text(key, "utf-8")
    keys = {"by path": {"GCP_SERVICE_ACCOUNT_FILE": str(file)}, "by content": {"GCP_SERVICE_ACCOUNT_INFO": key}}

    made = register(well_formed | keys.get(given, {}), list(BLOCKS))

    assert made == [f"{kind}/{name}" for kind, name in NAMES.items()]
    credentials = GcpCredentials.load(GCP_CREDENTIALS)
    if given == "not at all":
        assert credentials.service_account_info is None
        assert credentials.project == stack.env["GOOGLE_CLOUD_PROJECT"]
    else:
        assert credentials.service_account_info.get_secret_value() == json.loads(key)
        assert credentials.project == "of-the-key"
    bucket = GcsBucket.load(GCS_BUCKET)
    bucket.write_path(f"from-block-tests/{given}.txt", b"there")
    assert bucket.get_bucket().blob(f"data/from-block-tests/{given}.txt").download_as_bytes() == b"there"
    assert one(SqlAlchemyConnector.load(POSTGRES)) == 1


def one(connector: SqlAlchemyConnector) -> int:
    engine = connector.get_engine()
    with engine.connect() as connection:
        answer: int = connection.execute(sqlalchemy.text("SELECT 1")).scalar_one()
    engine.dispose()
    return answer


def test_running_it_again_updates_the_blocks_and_removes_unset_values(new_server, well_formed, key):
    old = {
        "LAKE_BUCKET": "gs://an-older-lake/",
        "POSTGRES_URL": "postgresql://old:password@elsewhere:1/old?application_name=old",
        "GCP_SERVICE_ACCOUNT_INFO": key,
    }
    register(old, list(BLOCKS))
    before = documents()
    assert before["gcs-bucket"]["data"]["bucket"] == "an-older-lake"

    register(well_formed | {"GOOGLE_CLOUD_PROJECT": "another"}, list(BLOCKS))

    after = documents("included")
    assert {kind: found["id"] for kind, found in after.items()} == {kind: found["id"] for kind, found in before.items()}
    assert after["gcs-bucket"]["data"]["bucket"] == "taxi-lake"
    assert GcsBucket.load(GCS_BUCKET).gcp_credentials.project == "another"
    assert "an-older-lake" not in json.dumps(after)
    assert CANARY not in json.dumps(after)
    assert not after["sqlalchemy-connector"]["data"]["connection_info"].get("query")
    assert one(SqlAlchemyConnector.load(POSTGRES)) == 1


def test_only_the_named_kinds_need_values_and_are_made(new_server, well_formed, monkeypatch, capsys):
    set_environment(monkeypatch, {"POSTGRES_URL": well_formed["POSTGRES_URL"]})
    assert main(["sqlalchemy-connector"]) == 0
    assert capsys.readouterr().out == f"registered sqlalchemy-connector/{POSTGRES}\n"
    assert list(documents()) == ["sqlalchemy-connector"]


@pytest.mark.parametrize(
    ("address", "warned"),
    [
        (f"db.example.com:5432/trips?application_name={CANARY}", True),
        ("192.0.2.7/trips", True),
        ("db.example.com/trips?sslmode=verify-full&sslrootcert=system", False),
        ("database/trips?sslmode=disable", False),
        ("localhost/trips", False),
        ("127.0.0.1:5432/trips", False),
        ("/trips?host=/run/postgresql", False),
    ],
)
def test_a_database_on_another_machine_without_sslmode_is_registered_with_a_warning(
    address: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSTGRES_URL", f"postgresql://user:{CANARY}@{address}")
    assert main(["sqlalchemy-connector"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"registered sqlalchemy-connector/{POSTGRES}\n"
    assert ("the server's certificate is not checked" in shown.err) is warned
    assert CANARY not in shown.err


def test_the_error_for_an_unknown_kind_lists_the_kinds(capsys):
    assert main(["gcs"]) == 2
    usage = capsys.readouterr().err
    assert [kind for kind in BLOCKS if f"[{kind}]" not in usage] == []


def test_the_block_types_of_both_collections_are_registered(new_server, well_formed):
    register(well_formed, ["sqlalchemy-connector"])

    async def slugs() -> set[str]:
        async with get_client() as client:
            return {kind.slug for kind in await client.read_block_types()}

    expected = {*BLOCKS, "gcpsecret", "bigquery-warehouse", "database-credentials"}
    assert expected <= asyncio.run(slugs())


# In a libpq URL the query can set every part, and overrides the other parts.
WHERE_PARTS_STAND = {
    "in their places": "postgresql://{username}:{password}@{host}:{port}/{database}",
    "in the query": "postgresql:///{database}?host={host}&port={port}&user={username}&password={password}",
    "in the query, over others": (
        f"postgresql://nobody:{CANARY}@nowhere:1/none?host={{host}}&port={{port}}&user={{username}}&password={{password}}"
        "&dbname={database}"
    ),
    "among options": "postgresql+psycopg2://{username}@{host}/{database}?password={password}&sslmode=prefer&port={port}",
}


@pytest.mark.parametrize("where", WHERE_PARTS_STAND)
def test_the_parts_of_a_database_url_get_their_fields_from_any_position(where, stack):
    real = make_url(stack.env["POSTGRES_URL"])
    parts = {name: str(getattr(real, name)) for name in ("username", "password", "host", "port", "database")}

    made = sqlalchemy_connector({"POSTGRES_URL": WHERE_PARTS_STAND[where].format(**parts)}).connection_info

    password = made.password.get_secret_value()
    assert {name: password if name == "password" else getattr(made, name) for name in parts} == parts
    assert (made.query or {}) == ({"sslmode": "prefer"} if "options" in where else {})
    assert one(SqlAlchemyConnector(connection_info=made)) == 1


@pytest.mark.parametrize("host", ["/cloudsql/project:region:instance", "first,second", "::1"])
def test_a_socket_folder_a_list_of_hosts_and_an_ipv6_address_are_valid_hosts(host):
    made = sqlalchemy_connector({"POSTGRES_URL": f"postgresql:///db?host={host}&user=u"})
    assert made.connection_info.host == host


def test_the_blocks_show_no_secret_unless_secrets_are_requested(new_server, key):
    url = f"postgresql:///db?host=/tmp&user=u&password={CANARY}"
    register({"LAKE_BUCKET": "lake", "POSTGRES_URL": url, "GCP_SERVICE_ACCOUNT_INFO": key}, list(BLOCKS))

    account = json.loads(key)
    secrets = [CANARY, account["private_key"].splitlines()[1], account["client_email"], account["token_uri"]]
    shown = json.dumps(documents())
    kept = json.dumps(documents("included"))
    assert [secret for secret in secrets if secret in shown] == []
    assert [secret for secret in secrets if secret not in kept] == []


KIND = "PRIVATE KEY"  # a separate constant, so that scanners for secrets do not report this file
PEM = f"-----BEGIN {KIND}-----\\n{CANARY}\\n-----END {KIND}-----\\n"
A_KEY = f'{{"client_email": "{CANARY}", "private_key": "{PEM}", "token_uri": "{CANARY}"}}'
DATABASE = f"postgresql://user:{CANARY}"

# Variable, value and part of the error. A value that begins with `file:` is written to a file.
BAD: list[tuple[str, str | None, str]] = [
    ("LAKE_BUCKET", None, "is not set"),
    ("LAKE_BUCKET", "  ", "is not set"),
    ("LAKE_BUCKET", f"{CANARY.lower()}/folder", "name no folder"),
    ("LAKE_BUCKET", f"gs://{CANARY.lower()}/folder/", "name no folder"),
    ("LAKE_BUCKET", f"s3://{CANARY.lower()}", "not the name of a bucket"),
    ("LAKE_BUCKET", CANARY, "a-z"),
    ("LAKE_BUCKET", "ab", "three"),
    ("POSTGRES_URL", None, "is not set"),
    ("POSTGRES_URL", CANARY, "is not a URL"),
    ("POSTGRES_URL", f"{DATABASE}@host:{CANARY}/db", "is not a URL"),
    ("POSTGRES_URL", f"mysql://user:{CANARY}@host/db", "must begin with postgresql://"),
    ("POSTGRES_URL", f"{DATABASE}@host:5432", "name of a database"),
    ("POSTGRES_URL", f"{DATABASE}@{CANARY}@host/db", "%40"),
    ("POSTGRES_URL", f"postgresql://us/er:{CANARY}@host/db", "%2F"),
    ("POSTGRES_URL", f"{DATABASE}@host/db?sslpassword={CANARY}", "sslpassword"),
    ("POSTGRES_URL", f"{DATABASE}@host/db?oauth_client_secret={CANARY}", "oauth_client_secret"),
    ("POSTGRES_URL", f"postgresql://user@host/db?pasword={CANARY}", "libpq does not know"),
    ("POSTGRES_URL", f"postgresql://user@host/db?dsn=password%3D{CANARY}", "libpq does not know"),
    ("POSTGRES_URL", f"postgresql://user@host/db?password={CANARY}&password=b", "twice"),
    ("POSTGRES_URL", f"{DATABASE}@/db?host=a,b&port=1,2", "port"),
    ("POSTGRES_URL", f"{DATABASE}@/db?port={CANARY}", "port"),
    ("POSTGRES_URL", f"{DATABASE}@/db?host=a:5432", "option port"),
    ("GCP_SERVICE_ACCOUNT_INFO", CANARY, "is not JSON"),
    ("GCP_SERVICE_ACCOUNT_INFO", f'["{CANARY}"]', "client_email, private_key, token_uri"),
    ("GCP_SERVICE_ACCOUNT_INFO", f'{{"private_key": "{CANARY}", "token_uri": {{}}}}', "no client_email, token_uri"),
    ("GCP_SERVICE_ACCOUNT_INFO", A_KEY, "unusable private_key"),
    (
        "GCP_SERVICE_ACCOUNT_INFO",
        "~/keys/key.json",
        "contains a path instead of a key; put it in GCP_SERVICE_ACCOUNT_FILE",
    ),
    (
        "GCP_SERVICE_ACCOUNT_INFO",
        "/run/secrets/key",
        "contains a path instead of a key; put it in GCP_SERVICE_ACCOUNT_FILE",
    ),
    ("GCP_SERVICE_ACCOUNT_FILE", CANARY, "names no readable file"),
    ("GCP_SERVICE_ACCOUNT_FILE", f"-----BEGIN PRIVATE KEY-----\n{CANARY}/\n", "names no readable file"),
    ("GCP_SERVICE_ACCOUNT_FILE", CANARY * 600, "names no readable file"),
    ("GCP_SERVICE_ACCOUNT_FILE", f"/{CANARY * 600}", "names no readable file"),
    ("GCP_SERVICE_ACCOUNT_FILE", "/", "names '/', but that is a folder"),
    ("GCP_SERVICE_ACCOUNT_FILE", "/nowhere/key.json", "names '/nowhere/key.json', but there is no such file"),
    ("GCP_SERVICE_ACCOUNT_FILE", "'~/key.json'", "on this machine; remove the quotes around the path"),
    ("GCP_SERVICE_ACCOUNT_FILE", f'"{CANARY}"', "names no readable file; remove the quotes around the path"),
    ("GCP_SERVICE_ACCOUNT_FILE", "~/key.json", "names '~/key.json', but there is no such file"),
    ("GCP_SERVICE_ACCOUNT_FILE", "~nobody-here/key.json", "names '~nobody-here/key.json', but there is no such user"),
    ("GCP_SERVICE_ACCOUNT_FILE", "key.json", f"names 'key.json', but there is no such file in {Path.cwd()}"),
    ("GCP_SERVICE_ACCOUNT_FILE", "/etc/passwd/key.json", "names '/etc/passwd/key.json', but there is no such file"),
    ("GCP_SERVICE_ACCOUNT_FILE", A_KEY, "put it in GCP_SERVICE_ACCOUNT_INFO"),
    ("GCP_SERVICE_ACCOUNT_FILE", f"file: {CANARY}", "is not JSON"),
    ("GCP_SERVICE_ACCOUNT_FILE", "file: ", "is not JSON"),
    ("GCP_SERVICE_ACCOUNT_FILE", f"file: \udcff{CANARY}", "which is not text"),
    ("GCP_SERVICE_ACCOUNT_FILE", f"file: {A_KEY}", "unusable private_key"),
]


def with_bad(environment: Environment, name: str, value: str | None, folder: Path) -> Environment:
    """Return the environment with one bad value."""
    if value and value.startswith("file: "):
        file = folder / "key.json"
        file.write_bytes(value.removeprefix("file: ").encode("utf-8", "surrogateescape"))
        value = str(file)
    good = {key: kept for key, kept in environment.items() if key != name}
    return good if value is None else good | {name: value}


@pytest.mark.parametrize(("name", "value", "says"), BAD, ids=range(len(BAD)))
def test_a_bad_value_is_named_and_never_quoted_and_nothing_is_made(
    name, value, says, closed, well_formed, tmp_path, monkeypatch, capfd
):
    environment = with_bad(well_formed, name, value, tmp_path)
    set_environment(monkeypatch, environment)
    with temporary_settings({PREFECT_API_URL: f"http://{closed}/api"}):  # any request to a server would fail
        with pytest.raises(BadValue) as raised:
            register(environment, list(BLOCKS))
        assert main([]) == 1
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    out, err = capfd.readouterr()
    for text in (str(raised.value), err):
        assert name in text
        assert says in text
        assert CANARY.lower() not in text.lower()
    assert out == ""
    assert err.startswith("error: ")


def test_a_key_given_twice_is_refused(well_formed, key):
    twice = {"GCP_SERVICE_ACCOUNT_INFO": key, "GCP_SERVICE_ACCOUNT_FILE": f"/{CANARY}"}
    with pytest.raises(BadValue, match="GCP_SERVICE_ACCOUNT_INFO and GCP_SERVICE_ACCOUNT_FILE are both set") as raised:
        register(well_formed | twice, list(BLOCKS))
    assert CANARY not in str(raised.value)


def test_the_error_for_a_bucket_without_credentials_says_what_to_make_first(
    new_server, well_formed, monkeypatch, capsys
):
    set_environment(monkeypatch, well_formed)
    assert main(["gcs-bucket"]) == 1
    assert "make gcp-credentials first" in capsys.readouterr().err
    assert main(["gcp-credentials"]) == 0
    assert main(["gcs-bucket"]) == 0
    assert GcsBucket.load(GCS_BUCKET).bucket == well_formed["LAKE_BUCKET"]


@pytest.mark.parametrize("broken", ["absent", "a file that is not there", "a file that is no key"])
def test_the_error_without_any_credentials_gives_advice(
    broken, new_server, well_formed, no_machine_credentials, tmp_path, monkeypatch
):
    file = tmp_path / "key.json"
    if broken != "absent":
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    if broken == "a file that is no key":
        file.write_text(json.dumps({"type": "service_account", "private_key": CANARY}), "utf-8")
    with pytest.raises(BadValue, match="gcloud auth application-default login") as raised:
        register(well_formed, list(BLOCKS))
    expected = {
        "absent": "neither GCP_SERVICE_ACCOUNT_FILE",
        "a file that is not there": f"GOOGLE_APPLICATION_CREDENTIALS names '{file}', but there is no such file",
        "a file that is no key": f"GOOGLE_APPLICATION_CREDENTIALS names '{file}', which is not a usable key",
    }
    assert str(raised.value).startswith(expected[broken])
    for word in ("this machine", "GCP_SERVICE_ACCOUNT_FILE", "GCP_SERVICE_ACCOUNT_INFO"):
        assert word in str(raised.value)
    assert CANARY not in str(raised.value)
    assert documents() == {}


@pytest.mark.parametrize("variable", ["GCP_SERVICE_ACCOUNT_FILE", "GOOGLE_APPLICATION_CREDENTIALS"])
def test_a_tilde_in_a_path_means_the_users_home(
    variable, new_server, well_formed, no_machine_credentials, key, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "key.json").write_text(key, "utf-8")
    if variable == "GOOGLE_APPLICATION_CREDENTIALS":
        monkeypatch.setenv(variable, "~/keys/key.json")
    register(well_formed | {variable: "~/keys/key.json"}, ["gcp-credentials"])
    used = GcpCredentials.load(GCP_CREDENTIALS).get_credentials_from_service_account()
    assert used.service_account_email == json.loads(key)["client_email"]


def test_the_error_for_a_bucket_without_any_credentials_gives_advice(new_server, well_formed, monkeypatch):
    register(well_formed, ["gcp-credentials"])
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(BadValue, match="gcloud auth application-default login"):
        register(well_formed, ["gcs-bucket"])


class Refusing(BaseHTTPRequestHandler):
    """A server that refuses every request."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def closed() -> Iterator[str]:
    """Yield an address where no server listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{unused.getsockname()[1]}"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://user:{canary}@{closed}/api", "ConnectError"),
        ("http://user:{canary}@{refusing}/api", "401"),
        ("//user:{canary}@{closed}/api", "UnsupportedProtocol"),
        ("http://host:{canary}/api", "InvalidURL"),
        ("http://user:{canary}@{page}", "its answer is not JSON"),
    ],
)
def test_an_unusable_prefect_server_is_reported_in_one_line(
    url, why, closed, refusing, well_formed, monkeypatch, capfd
):
    set_environment(monkeypatch, {"POSTGRES_URL": well_formed["POSTGRES_URL"]})
    with web_page() as page:
        address = url.format(canary=CANARY, closed=closed, refusing=refusing, page=page)
        with temporary_settings({PREFECT_API_URL: address}):
            assert main(["sqlalchemy-connector"]) == 1
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "PREFECT_API_URL" in err
    assert why in err
    assert CANARY not in err


def test_the_program_prints_one_error_without_secrets_and_exits_with_1(closed, well_formed, tmp_path):
    """Run one program per way in which code below `main` could print: logging, warnings, a traceback."""
    fine = well_formed | {"POSTGRES_URL": f"postgresql://u:{CANARY}@host/db"}
    cases: dict[str, Environment] = {
        "POSTGRES_URL": fine | {"POSTGRES_URL": f"postgresql://u:{CANARY}@h:{CANARY}/db"},
        "GCP_SERVICE_ACCOUNT_FILE": fine | {"GCP_SERVICE_ACCOUNT_FILE": A_KEY * 9},
        "PREFECT_API_URL": fine | {"PREFECT_API_URL": f"http://u:{CANARY}@{closed}/api"},
    }
    clean = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "blocks.register"],
            cwd=ROOT, env=clean | {"PREFECT_HOME": str(tmp_path / name)} | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for name, environment in cases.items()
    }  # fmt: skip
    for name, process in running.items():
        out, err = process.communicate()
        assert (process.returncode, out) == (1, ""), name
        assert "Traceback" not in err
        assert [line for line in err.splitlines() if line.startswith("error: ") and name in line]
        assert CANARY not in err


def sourced(text: str, folder: Path) -> Environment:
    """Return the variables that sh exports from a file, with the README's command."""
    (folder / ".env").write_text(text, "utf-8")
    done = subprocess.run(
        ["sh", "-euc", "set -a; . ./.env; set +a; env -0"],
        cwd=folder, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


EXAMPLE = (ROOT / ".env.example").read_text("utf-8")


def test_the_example_can_be_sourced_and_has_valid_values(stack, tmp_path):
    environment = sourced(EXAMPLE, tmp_path)
    assert {"LAKE_BUCKET", "POSTGRES_URL"} == environment.keys() & set(VARIABLES)
    for _, _, check in BLOCKS.values():
        check(environment)


def test_the_shell_changes_no_value_of_the_example(tmp_path):
    values = dict(re.findall(r"^#?([A-Z_]+)='(.*)'$", EXAMPLE, re.MULTILINE))
    assert values.keys() == set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE))
    assert set(VARIABLES) <= values.keys()
    environment = sourced(re.sub(r"^#(?=[A-Z_]+=)", "", EXAMPLE, flags=re.MULTILINE), tmp_path)
    assert {name: environment[name] for name in values} == values


def test_the_shell_changes_no_value_with_special_characters(key, tmp_path):
    url = "postgresql://u:p$HOME`x`!#@host/db?sslmode=require&application_name=a"
    text = EXAMPLE.replace(re.search(r"^POSTGRES_URL='(.*)'", EXAMPLE, re.MULTILINE)[1], url)
    text = re.sub(r"^#(GCP_SERVICE_ACCOUNT_INFO=).*$", lambda m: f"{m[1]}'{key}'", text, flags=re.MULTILINE)
    environment = sourced(text, tmp_path)
    assert environment["POSTGRES_URL"] == url
    assert environment["GCP_SERVICE_ACCOUNT_INFO"] == key
