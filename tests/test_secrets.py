"""Every secret contains a canary value. After successful and failed runs, no output of the system contains it."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery, storage
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect_sqlalchemy import ConnectionComponents, SqlAlchemyConnector, SyncDriver
from sqlalchemy import create_engine, make_url, text

from blocks import FLOW_CODE, NOTIFICATIONS
from blocks.register import ON_DEMAND, sqlalchemy_connector
from local.servers.stack import Stack
from tests.command_line import ROOT, ended, start_programs
from tests.receivers import VALUES, Receiver, receiver

HIDDEN = "********"

pytestmark = pytest.mark.operations


@pytest.fixture(scope="module")
def here() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture(scope="module")
def environment(server: Stack, here: Receiver, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return an environment with every secret that the project reads, and with an empty Prefect home."""
    env = server.environment() | {"PREFECT_HOME": str(tmp_path_factory.mktemp("secrets"))}
    env |= {"GCP_SERVICE_ACCOUNT_FILE": env["GOOGLE_APPLICATION_CREDENTIALS"]}
    for values in VALUES.values():
        env |= values
    return env | {
        "PREFECT_API_KEY": "canary-api-key",
        "NOTIFY_TEAMS_URL": VALUES["ms-teams-webhook"]["NOTIFY_TEAMS_URL"].rpartition("sig=")[0] + "sig=canaryteams",
        "NOTIFY_TWILIO_TOKEN": "canarytwilio" + "0" * 20,
        "NOTIFY_OPSGENIE_KEY": "canary-opsgenie",
        "NOTIFY_SLACK_URL": "https://hooks.slack.com/services/T00000000/B00000000/canaryslack" + "0" * 13,
        "NOTIFY_MAIL_URL": "mailto://someone:canary-mail@example.com?to=data@example.com",
        "NOTIFY_WEBHOOK_URL": f"{here.url}/canary-webhook-path",
        "NOTIFY_WEBHOOK_TOKEN": "canary-webhook-token",
        "FLOW_CODE_REPOSITORY": "https://github.com/somebody/trips.git",
        "FLOW_CODE_TOKEN": "github_pat_canary",
        "TRIPS_NOTIFY": f"custom-webhook/{NOTIFICATIONS} slack-webhook/no-such-block",
    }


@pytest.fixture(scope="module")
def secrets(environment: dict[str, str]) -> dict[str, str]:
    """Return the part of each secret that must not appear in any output."""
    password = make_url(environment["POSTGRES_URL"]).password
    assert password
    assert len(password) > 8
    account = json.loads(Path(environment["GCP_SERVICE_ACCOUNT_FILE"]).read_text("utf-8"))
    key = account["private_key"].splitlines()
    return {
        "private key": key[len(key) // 2],
        "Postgres password": password,
        "Secret block": "canary-secret-block",
        "Twilio token": "canarytwilio",
        "Opsgenie key": "canary-opsgenie",
        "Slack URL": "canaryslack",
        "mail password": "canary-mail",
        "webhook URL": "canary-webhook-path",
        "webhook token": "canary-webhook-token",
        "GitHub token": "github_pat_canary",
        "API key": "canary-api-key",
        "Teams signature": "canaryteams",
    }


@pytest.fixture(scope="module")
def output(environment: dict[str, str], here: Receiver) -> str:
    """Make the blocks, run flows that succeed and flows that fail, and return everything that they printed."""
    here.answer = 200
    commands = ["blocks.register", "flows/etl_web_gcs.py green 2018 5", "flows/ingest_data.py green 2018 5"]
    succeeded, ends = ended(start_programs(environment, *commands))
    assert ends == [0, 0, 0], succeeded
    assert succeeded.count("registered ") == 3 + len(ON_DEMAND), succeeded
    assert len(here.messages) == 2
    with temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}):
        Secret(value="canary-secret-block").save("of-the-tests", overwrite=True)
        no_such_database = environment["POSTGRES_URL"].rpartition("/")[0] + "/nowhere"
        sqlalchemy_connector({"POSTGRES_URL": no_such_database}).save("no-database", overwrite=True)
    here.answer = 500
    # One month is not in the lake.
    commands = ["flows/ingest_data.py green 2018 6 --block-name no-database", "flows/etl_gcs_bq.py green 2018 5 6"]
    failed, ends = ended(start_programs(environment, *commands))
    assert ends == [1, 1], failed
    assert len(here.messages) == 4
    assert failed.count("could not be notified; the run itself is not affected: HTTPStatusError 500") == 2
    return succeeded + failed


async def _pages(read: Callable[..., Any]) -> list[str]:
    found: list[str] = []
    while page := await read(limit=200, offset=len(found)):
        found += [item.json() for item in page]
    return found


def of_the_api(url: str) -> dict[str, list[str]]:
    """Return everything that a user of the API can read about blocks, logs, artifacts, runs and deployments."""

    async def read() -> dict[str, list[str]]:
        async with get_client() as client:

            async def blocks(**page: int) -> Any:
                return await client.read_block_documents(include_secrets=False, **page)

            kinds = {
                "blocks": blocks,
                "logs": client.read_logs,
                "artifacts": client.read_artifacts,
                "flow runs": client.read_flow_runs,
                "task runs": client.read_task_runs,
                "deployments": client.read_deployments,
            }
            return {name: await _pages(kind) for name, kind in kinds.items()}

    with temporary_settings({PREFECT_API_URL: url}):
        return asyncio.run(read())


def test_no_output_of_the_system_contains_a_secret(
    output: str, secrets: dict[str, str], environment: dict[str, str], server: Stack, here: Receiver
) -> None:
    written: dict[str, bytes] = {"standard output and error": output.encode()}
    # Only the bodies of notifications are checked: the webhook's address and token are secrets that the request needs.
    written |= {f"notification {n}": message.body.encode() for n, message in enumerate(here.messages)}
    shown = of_the_api(environment["PREFECT_API_URL"])
    assert [kind for kind, found in shown.items() if not found] == ["deployments"] or all(shown.values())
    written |= {kind: "\n".join(found).encode() for kind, found in shown.items()}
    for blob in storage.Client().list_blobs(environment["LAKE_BUCKET"]):
        written[f"object {blob.name}"] = blob.download_as_bytes() + str(blob.metadata).encode()
    engine = create_engine(environment["POSTGRES_URL"])
    with engine.connect() as connection:
        written["loads in Postgres"] = str(connection.execute(text("TABLE loads")).all()).encode()
    engine.dispose()
    rows = bigquery.Client().query_and_wait("SELECT * FROM trips_data_all.loads")
    written["loads in BigQuery"] = str([dict(row) for row in rows]).encode()
    places = [Path(environment["PREFECT_HOME"]), server.state / "prefect", server.state / "log"]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        if not path.name.startswith("prefect.db"):  # the API's answers are checked above, and blocks are encrypted
            written[f"file {path.name}"] = path.read_bytes()
    assert "notification 3" in written
    assert len(written) > 15
    found = [
        (name, where) for name, value in secrets.items() for where, what in written.items() if value.encode() in what
    ]
    assert found == []


def _arguments_of_all_processes() -> str:
    """What `ps` shows to every user of the machine."""
    shown = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            shown.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    return "\n".join(shown)


YEARS = {signal.SIGINT: "2014", signal.SIGTERM: "2015", signal.SIGABRT: "2016"}  # of months that no other run loads


@pytest.mark.parametrize("number", YEARS)
def test_no_secret_is_in_ps_or_printed_by_a_run_that_is_killed(
    number: signal.Signals, output: str, environment: dict[str, str], secrets: dict[str, str]
) -> None:
    variables = environment | {"PYTHONFAULTHANDLER": "1", "PREFECT_LOGGING_LEVEL": "DEBUG", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "flows/etl_web_gcs.py", "green", YEARS[number], "1", "2", "3"], cwd=ROOT, env=variables,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    printed, shown, until = b"", "", time.monotonic() + 120
    while b"look up" not in printed and time.monotonic() < until:
        if select.select([process.stdout], [], [], 1)[0]:
            printed += (piece := os.read(process.stdout.fileno(), 1 << 16))
            if not piece:
                break
        shown += _arguments_of_all_processes()
    assert "flows/etl_web_gcs.py" in shown
    process.send_signal(number)
    printed += process.communicate(timeout=120)[0]
    assert process.returncode != 0, printed.decode()
    assert [name for name, value in secrets.items() if value.encode() in printed or value in shown] == []


def test_flows_can_read_every_secret_and_users_see_eight_stars(
    output: str, secrets: dict[str, str], environment: dict[str, str]
) -> None:
    async def documents(include_secrets: bool) -> dict[str, Any]:
        async with get_client() as client:
            found = await client.read_block_documents(include_secrets=include_secrets)
            return {f"{block.block_type.slug}/{block.name}": block.data for block in found if block.block_type}

    with temporary_settings({PREFECT_API_URL: environment["PREFECT_API_URL"]}):
        shown, known = asyncio.run(documents(False)), asyncio.run(documents(True))
    missing = [
        name
        for name, value in secrets.items()
        if name != "API key" and value not in json.dumps(known).replace("\\n", "\n")
    ]
    assert missing == []
    assert shown["secret/of-the-tests"]["value"] == HIDDEN
    assert shown[f"slack-webhook/{NOTIFICATIONS}"]["url"] == HIDDEN
    assert shown[f"github/{FLOW_CODE}"]["access_token"] == HIDDEN
    webhook = shown[f"custom-webhook/{NOTIFICATIONS}"]
    assert (webhook["url"], set(webhook["secrets"].values())) == ("{{url}}", {HIDDEN})


def test_a_connector_saved_by_hand_shows_its_password_as_docs_secrets_warns(server: Stack) -> None:
    """If this fails, prefect-sqlalchemy hides the password. Then remove the warning and the workaround in `blocks.register`."""
    by_hand = SqlAlchemyConnector(
        connection_info=ConnectionComponents(
            driver=SyncDriver.POSTGRESQL_PSYCOPG2, username="u", password="canary-by-hand", host="h", database="d"
        )
    )
    by_register = sqlalchemy_connector({"POSTGRES_URL": "postgresql://u:canary-by-hand@h/d"})

    async def shown(name: str) -> str:
        async with get_client() as client:
            return (
                await client.read_block_document_by_name(name, "sqlalchemy-connector", include_secrets=False)
            ).json()

    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        by_hand.save("by-hand", overwrite=True)
        by_register.save("by-register", overwrite=True)
        assert "canary-by-hand" in asyncio.run(shown("by-hand"))
        assert "canary-by-hand" not in asyncio.run(shown("by-register"))

        async def delete() -> None:
            async with get_client() as client:
                found = await client.read_block_document_by_name("by-hand", "sqlalchemy-connector")
                await client.delete_block_document(found.id)

        asyncio.run(delete())
