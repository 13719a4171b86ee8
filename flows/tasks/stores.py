"""The stores that blocks name: a store's block is loaded here and nowhere else."""

from typing import Any, cast

from google.auth.exceptions import GoogleAuthError
from prefect.blocks.core import Block
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket
from prefect_sqlalchemy import SqlAlchemyConnector
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from flows.connectors.lake import Lake
from flows.connectors.postgres import Postgres
from flows.connectors.warehouse import Warehouse
from flows.tlc.errors import MisconfiguredBlock


def _load(kind: type[Block], name: str) -> Any:
    slug: str = kind.get_block_type_slug()  # type: ignore[no-untyped-call]
    try:
        return kind.load(name)
    except GoogleAuthError as error:
        raise MisconfiguredBlock(
            f"block {slug}/{name} has no usable Google credentials ({type(error).__name__}): put a service-account JSON into it,"
            " or set GOOGLE_APPLICATION_CREDENTIALS, or run where the machine has a service account."
        ) from None
    except ValueError as error:
        if "Unable to find block document" in str(error):
            raise MisconfiguredBlock(
                f"block {slug}/{name} does not exist; make it with `python -m blocks.register` or in the UI,"
                " or name another block."
            ) from None
        # The text of a validation error may quote a secret.
        raise MisconfiguredBlock(
            f"block {slug}/{name} cannot be used as it is ({type(error).__name__}); edit it in the UI."
        ) from None


def lake_of(block_name: str) -> Lake:
    """The lake that a `gcs-bucket` block points to."""
    return Lake(cast(GcsBucket, _load(GcsBucket, block_name)))


def warehouse_of(credentials_block: str, dataset: str) -> Warehouse:
    """The BigQuery dataset that a `gcp-credentials` block gives access to."""
    return Warehouse(cast(GcpCredentials, _load(GcpCredentials, credentials_block)), dataset)


def postgres_of(block_name: str) -> Postgres:
    """The database that a `sqlalchemy-connector` block points to."""
    block = cast(SqlAlchemyConnector, _load(SqlAlchemyConnector, block_name))
    try:
        engine = block.get_engine()
    except (ImportError, SQLAlchemyError):  # another driver, which is not installed
        engine = None
    if not isinstance(engine, Engine) or (engine.dialect.name, engine.driver) != ("postgresql", "psycopg2"):
        raise MisconfiguredBlock(
            f"block sqlalchemy-connector/{block_name} is not for PostgreSQL with the driver postgresql+psycopg2;"
            " edit it in the UI, or make another with `python -m blocks.register`."
        )
    return Postgres(engine)
