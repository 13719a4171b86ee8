"""Make this project's blocks from the environment: `python -m blocks.register`. Running it again updates them."""

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import prefect_gcp
import prefect_sqlalchemy
from google.auth.exceptions import GoogleAuthError
from prefect.blocks.core import Block
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from prefect_sqlalchemy import ConnectionComponents, SqlAlchemyConnector, SyncDriver
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from blocks import GCP_CREDENTIALS, GCS_BUCKET, LAKE_FOLDER, POSTGRES

Environment = Mapping[str, str]


class BadValue(Exception):
    """A variable of the environment is missing or malformed; the text names it and never quotes it."""


def _required(environment: Environment, name: str, example: str) -> str:
    value = environment.get(name, "").strip()
    if not value:
        raise BadValue(f"{name} is not set; for example {name}={example}")
    return value


def _service_account(environment: Environment) -> dict[str, Any] | None:
    """The service account's JSON, by content or by path; None to use the machine's own (application default) credentials."""
    content = environment.get("GCP_SERVICE_ACCOUNT_INFO", "").strip()
    path = environment.get("GCP_SERVICE_ACCOUNT_FILE", "").strip()
    name = "GCP_SERVICE_ACCOUNT_INFO" if content else "GCP_SERVICE_ACCOUNT_FILE"
    if content and path:
        raise BadValue("GCP_SERVICE_ACCOUNT_INFO and GCP_SERVICE_ACCOUNT_FILE are both set; keep one.")
    if path:
        file = Path(path).expanduser()
        if not file.is_file():
            raise BadValue("GCP_SERVICE_ACCOUNT_FILE does not name a file.")
        content = file.read_text(encoding="utf-8")
    if not content:
        return None
    try:
        account = json.loads(content)
    except ValueError:
        raise BadValue(f"{name} is not JSON; it should be a service account's key file.") from None
    missing = [
        k for k in ("client_email", "private_key", "token_uri") if not (isinstance(account, dict) and account.get(k))
    ]
    if missing:
        raise BadValue(f"{name} is not a service account's key: it has no {', '.join(missing)}.")
    return dict(account)


def gcp_credentials(environment: Environment) -> GcpCredentials:
    """Credentials from `GCP_SERVICE_ACCOUNT_FILE` or `…_INFO`; with neither, whatever the machine that runs a flow has."""
    account = _service_account(environment)
    project = environment.get("GOOGLE_CLOUD_PROJECT") or (account or {}).get("project_id")
    try:
        return GcpCredentials(service_account_info=account, project=project)
    except (GoogleAuthError, ValueError) as error:
        what = (
            "the service account's key"
            if account
            else "GCP_SERVICE_ACCOUNT_FILE is not set, and the machine's own credentials"
        )
        raise BadValue(f"{what} cannot be used ({type(error).__name__}).") from None


def gcs_bucket(environment: Environment) -> GcsBucket:
    """The lake, `LAKE_BUCKET`, with the credentials block just made."""
    bucket = _required(environment, "LAKE_BUCKET", "my-taxi-lake").removeprefix("gs://").rstrip("/")
    if "/" in bucket or len(bucket) < 3:
        raise BadValue("LAKE_BUCKET is not a bucket's name; leave out folders, it needs at least three characters.")
    return GcsBucket(bucket=bucket, bucket_folder=LAKE_FOLDER, gcp_credentials=GcpCredentials.load(GCP_CREDENTIALS))


def _postgres_url(environment: Environment) -> URL:
    try:
        url = make_url(_required(environment, "POSTGRES_URL", "postgresql://user:password@host:5432/database"))
    except (ArgumentError, ValueError):
        raise BadValue("POSTGRES_URL is not a URL such as postgresql://user:password@host:5432/database") from None
    if url.get_backend_name() not in ("postgresql", "postgres") or not url.database:
        raise BadValue("POSTGRES_URL must begin with postgresql:// and end with a database's name.")
    return url


def sqlalchemy_connector(environment: Environment) -> SqlAlchemyConnector:
    """The database, `POSTGRES_URL`; its password is stored as a secret."""
    url = _postgres_url(environment)
    return SqlAlchemyConnector(
        connection_info=ConnectionComponents(
            driver=SyncDriver.POSTGRESQL_PSYCOPG2,
            username=url.username,
            password=url.password,
            host=url.host,
            port=str(url.port) if url.port else None,
            database=url.database,
            query=dict(url.query) or None,
        )
    )


# In this order: the bucket refers to the credentials.
BLOCKS: dict[str, tuple[str, Callable[[Environment], Block], Callable[[Environment], object]]] = {
    "gcp-credentials": (GCP_CREDENTIALS, gcp_credentials, _service_account),
    "gcs-bucket": (GCS_BUCKET, gcs_bucket, lambda environment: _required(environment, "LAKE_BUCKET", "my-taxi-lake")),
    "sqlalchemy-connector": (POSTGRES, sqlalchemy_connector, _postgres_url),
}


def register_types(module: ModuleType) -> None:
    """Tell the server of a module's block types, as `prefect block register -m` does: the UI can then make such blocks."""
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if issubclass(kind, Block) and kind.__module__.startswith(module.__name__):
            kind.register_type_and_schema()


def register(environment: Environment, kinds: list[str]) -> list[str]:
    """Make or update the blocks of `kinds`; nothing is made unless the values of all of them are there and well formed."""
    for kind in kinds:
        BLOCKS[kind][2](environment)
    for module in (prefect_gcp, prefect_sqlalchemy):
        register_types(module)
    made = []
    for kind in kinds:
        name, make, _ = BLOCKS[kind]
        make(environment).save(name, overwrite=True)
        made.append(f"{kind}/{name}")
    return made


def main(arguments: list[str]) -> int:
    """Register the blocks of the kinds named, or all; 0 if that went well."""
    unknown = [argument for argument in arguments if argument not in BLOCKS]
    if unknown:
        print(f"usage: python -m blocks.register [{'] ['.join(BLOCKS)}]", file=sys.stderr)
        return 2
    chosen = [kind for kind in BLOCKS if not arguments or kind in arguments]
    try:
        for block in register(os.environ, chosen):
            print(f"registered {block}")
    except BadValue as error:
        print(
            f"error: {error}\nSee .env.example; to make only some blocks, name their kinds: {' '.join(BLOCKS)}.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
