"""Make this project's blocks from the environment: `python -m blocks.register`. Running it again updates them."""

import atexit
import gc
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

if __name__ == "__main__":
    gc.disable()  # for a short program, collections take a third of its time
    atexit.register(gc.freeze)

import prefect_gcp
import prefect_sqlalchemy
from google.auth.exceptions import GoogleAuthError
from prefect.blocks.core import Block
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from prefect_sqlalchemy import ConnectionComponents, SqlAlchemyConnector, SyncDriver
from psycopg2 import ProgrammingError
from psycopg2.extensions import make_dsn
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from blocks import (
    FLOW_CODE,
    GCP_CREDENTIALS,
    GCS_BUCKET,
    LAKE_FOLDER,
    MAIL,
    NOTIFICATIONS,
    POSTGRES,
    github,
    notifications,
)
from blocks.environment import (
    NO_SERVER,
    BadValue,
    Environment,
    expand_machine_key,
    key_file,
    like_path,
    machine_key_fault,
    no_server,
    require_api_key,
    required,
)


def _service_account(environment: Environment) -> dict[str, Any] | None:
    """Return the service account's key, given by content or by path, or None for application default credentials."""
    content = environment.get("GCP_SERVICE_ACCOUNT_INFO", "").strip()
    path = environment.get("GCP_SERVICE_ACCOUNT_FILE", "").strip()
    name = "GCP_SERVICE_ACCOUNT_INFO" if content else "GCP_SERVICE_ACCOUNT_FILE"
    if content and path:
        raise BadValue("GCP_SERVICE_ACCOUNT_INFO and GCP_SERVICE_ACCOUNT_FILE are both set; keep one.")
    if path.startswith("{"):
        raise BadValue("GCP_SERVICE_ACCOUNT_FILE contains a key instead of a path; put it in GCP_SERVICE_ACCOUNT_INFO.")
    if content and like_path(content):
        raise BadValue("GCP_SERVICE_ACCOUNT_INFO contains a path instead of a key; put it in GCP_SERVICE_ACCOUNT_FILE.")
    if file := key_file(environment, "GCP_SERVICE_ACCOUNT_FILE"):
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = type(error).__name__
            raise BadValue(f"GCP_SERVICE_ACCOUNT_FILE names {path!r}, which is not text ({why}).") from None
    if not content and not path:
        return None
    try:
        account = json.loads(content)
    except ValueError:
        raise BadValue(f"{name} is not JSON; it should be a service account's key file.") from None
    parts = account if isinstance(account, dict) else {}
    needed = ("client_email", "private_key", "token_uri")
    if missing := [part for part in needed if not (isinstance(parts.get(part), str) and parts[part])]:
        raise BadValue(f"{name} is not a service account's key: it has no {', '.join(missing)}.")
    return parts


_NO_CREDENTIALS = (
    "neither GCP_SERVICE_ACCOUNT_FILE nor GCP_SERVICE_ACCOUNT_INFO is set, so the block would use the application default "
    "credentials of each machine. To make the block, Prefect needs such credentials on this machine too: "
    "set one of the two variables, or run `gcloud auth application-default login`, "
    "or set GOOGLE_APPLICATION_CREDENTIALS to the path of a key file"
)


def _no_credentials(why: str) -> BadValue:
    """Return the error for a machine without application default credentials. A wrong key file is named first."""
    return BadValue(f"{machine_key_fault()} {_NO_CREDENTIALS} ({why}).".lstrip())


def gcp_credentials(environment: Environment) -> GcpCredentials:
    """Return a credentials block from `GCP_SERVICE_ACCOUNT_FILE` or `…_INFO`.

    Without either, the block means the application default credentials of the machine that runs a flow.
    """
    account = _service_account(environment)
    expand_machine_key()
    project = environment.get("GOOGLE_CLOUD_PROJECT", "").strip() or (account or {}).get("project_id")
    try:
        return GcpCredentials(service_account_info=account, project=project)
    except (GoogleAuthError, OSError, TypeError, ValueError) as error:
        why = type(error).__name__
        if account is None:
            raise _no_credentials(why) from None
        name = "INFO" if environment.get("GCP_SERVICE_ACCOUNT_INFO", "").strip() else "FILE"
        raise BadValue(f"GCP_SERVICE_ACCOUNT_{name} has an unusable private_key ({why}).") from None


def _bucket(environment: Environment) -> str:
    bucket = required(environment, "LAKE_BUCKET", "my-taxi-lake").removeprefix("gs://").rstrip("/")
    # https://cloud.google.com/storage/docs/buckets#naming
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket):
        raise BadValue(
            "LAKE_BUCKET is not the name of a bucket: use three or more of a-z, 0-9, '-', '_' and '.', "
            "begin and end with a letter or a digit, and name no folder."
        )
    return bucket


def gcs_bucket(environment: Environment) -> GcsBucket:
    """Return a block for the lake, `LAKE_BUCKET`, with the credentials block of the Prefect server."""
    bucket = _bucket(environment)
    expand_machine_key()
    try:
        credentials = GcpCredentials.load(GCP_CREDENTIALS)
    except (GoogleAuthError, OSError) as error:
        raise _no_credentials(type(error).__name__) from None
    except ValueError:
        raise BadValue(
            f"gcs-bucket refers to the block gcp-credentials/{GCP_CREDENTIALS}, which the server does not have: "
            "make gcp-credentials first."
        ) from None
    return GcsBucket(bucket=bucket, bucket_folder=LAKE_FOLDER, gcp_credentials=credentials)


# The block's fields by libpq's names. libpq also accepts them as options in the URL's query, which Prefect would show.
_FIELDS = {"user": "username", "password": "password", "host": "host", "port": "port", "dbname": "database"}
# Secrets for which the block has no secret field.
_UNSTORABLE = ("sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")


def _connection(environment: Environment) -> ConnectionComponents:
    """Return `POSTGRES_URL` as the fields of the block, with the password in a secret field."""
    example = "postgresql://user:password@host:5432/database"
    try:
        url = make_url(required(environment, "POSTGRES_URL", example))
    except (ArgumentError, ValueError):
        raise BadValue(f"POSTGRES_URL is not a URL such as {example}") from None
    if any(not isinstance(value, str) for value in url.query.values()):
        raise BadValue("POSTGRES_URL gives an option twice.")
    query = {name: value for name, value in url.query.items() if isinstance(value, str)}
    if secret := [name for name in _UNSTORABLE if name in query]:
        raise BadValue(
            f"POSTGRES_URL has {', '.join(secret)}, which the block would store readable for everyone; "
            "set it on the machines that run the flows, for example with PGSERVICEFILE, or use a key without a password."
        )
    parts = {field: getattr(url, field) for field in ("username", "password", "host", "database")}
    parts["port"] = None if url.port is None else str(url.port)
    # As in libpq, options in the query override the other parts.
    parts |= {field: query.pop(name) for name, field in _FIELDS.items() if name in query}
    if url.get_backend_name() not in ("postgresql", "postgres") or not parts["database"]:
        raise BadValue("POSTGRES_URL must begin with postgresql:// and end with the name of a database.")
    if any("@" in (parts[field] or "") for field in ("host", "database")):
        raise BadValue(
            "POSTGRES_URL has more than one @: in a user name or password, write @ as %40, / as %2F and : as %3A."
        )
    if re.fullmatch(r"[^/:]+:\d+", parts["host"] or ""):
        raise BadValue("POSTGRES_URL has a port in the option host; give it as the option port.")
    if parts["port"] and not re.fullmatch(r"[0-9]{1,5}", parts["port"]):
        raise BadValue("POSTGRES_URL has a port that is not a number.")
    try:
        make_dsn("", **query)  # libpq rejects typos such as pasword=…, whose value Prefect would show
    except (ProgrammingError, TypeError):  # TypeError: the option dsn, which could contain a secret
        raise BadValue("POSTGRES_URL has an option after the ? that libpq does not know.") from None
    return ConnectionComponents(driver=SyncDriver.POSTGRESQL_PSYCOPG2, query=query or None, **parts)


def _about_tls(environment: Environment) -> str:
    """Return a warning if `POSTGRES_URL` names another machine and has no `sslmode`, else ""."""
    connection = _connection(environment)
    host = connection.host or ""
    if host.startswith("/") or host in ("", "localhost", "127.0.0.1", "::1") or "sslmode" in (connection.query or {}):
        return ""
    return (
        "warning: POSTGRES_URL has no sslmode, so the server's certificate is not checked. Add"
        " ?sslmode=verify-full&sslrootcert=system; see docs/permissions.md."
    )


def sqlalchemy_connector(environment: Environment) -> SqlAlchemyConnector:
    """Return a block for the database `POSTGRES_URL`, with the password as a secret.

    The block cannot connect until it has been saved and loaded again.
    """
    connector = SqlAlchemyConnector(connection_info=_connection(environment))
    # prefect-sqlalchemy also stores this URL with the password, and the server does not treat it as a secret.
    connector._rendered_url = connector.connection_info.copy(update={"password": None}).create_url()
    return connector


# Block type: name, function that makes the block, function that checks its values first. The order matters: the bucket refers
# to the credentials.
BLOCKS: dict[str, tuple[str, Callable[[Environment], Block], Callable[[Environment], object]]] = {
    "gcp-credentials": (GCP_CREDENTIALS, gcp_credentials, gcp_credentials),
    "gcs-bucket": (GCS_BUCKET, gcs_bucket, _bucket),
    "sqlalchemy-connector": (POSTGRES, sqlalchemy_connector, _connection),
}

# Optional blocks. Block type: name, function that makes the block, variable that turns it on.
ON_DEMAND: dict[str, tuple[str, Callable[[Environment], Block], str]] = {
    "slack-webhook": (NOTIFICATIONS, notifications.slack, "NOTIFY_SLACK_URL"),
    "ms-teams-webhook": (NOTIFICATIONS, notifications.teams, "NOTIFY_TEAMS_URL"),
    "twilio-sms": (NOTIFICATIONS, notifications.twilio, "NOTIFY_TWILIO_TOKEN"),
    "opsgenie-webhook": (NOTIFICATIONS, notifications.opsgenie, "NOTIFY_OPSGENIE_KEY"),
    "mail": (MAIL, notifications.mail, "NOTIFY_MAIL_URL"),
    "custom-webhook": (NOTIFICATIONS, notifications.webhook, "NOTIFY_WEBHOOK_URL"),
    "github": (FLOW_CODE, github.flow_code, "FLOW_CODE_REPOSITORY"),
}


def register_types(module: ModuleType) -> None:
    """Register a module's block types with the server, as `prefect block register -m` does. The UI can then make such blocks."""
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if issubclass(kind, Block) and kind.__module__.startswith(module.__name__):
            kind.register_type_and_schema()


def register(environment: Environment, kinds: list[str]) -> list[str]:
    """Make or update the blocks of `kinds` and return their names. Raise `BadValue`, and make none, if any value is wrong."""
    rows = [BLOCKS.get(kind) or (*ON_DEMAND[kind][:2], ON_DEMAND[kind][1]) for kind in kinds]
    require_api_key()
    for _, _, check in rows:
        check(environment)
    for module in (prefect_gcp, prefect_sqlalchemy):
        register_types(module)
    made = []
    for name, make, _ in rows:
        block = make(environment)
        block.save(name, overwrite=True)
        made.append(f"{block.get_block_type_slug()}/{name}")  # type: ignore[no-untyped-call]
    return made


def main(arguments: list[str]) -> int:
    """Register the blocks of the given kinds; without kinds, the required ones and those that the environment turns on."""
    kinds = [*BLOCKS, *ON_DEMAND]
    if set(arguments) - set(kinds):
        print(f"usage: python -m blocks.register [{'] ['.join(kinds)}]", file=sys.stderr)
        return 2
    wanted = [*BLOCKS, *(kind for kind, (_, _, variable) in ON_DEMAND.items() if os.environ.get(variable, "").strip())]
    chosen = [kind for kind in kinds if kind in (arguments or wanted)]
    try:
        for block in register(os.environ, chosen):
            print(f"registered {block}")
        if "sqlalchemy-connector" in chosen and (warning := _about_tls(os.environ)):
            print(warning, file=sys.stderr)
    except BadValue as error:
        advice = f"See .env.example; to make only some blocks, name their kinds: {' '.join(kinds)}."
        print(f"error: {error}\n{advice}", file=sys.stderr)
        return 1
    except NO_SERVER as error:
        print(f"error: {no_server(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
