"""Open the stores that blocks name. Blocks are loaded in this module only."""

import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import lru_cache
from pkgutil import resolve_name
from typing import Any, cast

from prefect import task
from prefect.blocks.core import Block
from prefect.utilities.asyncutils import sync_compatible
from pydantic.v1 import ValidationError

from blocks import GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from blocks.environment import MACHINE_KEY, BadValue, expand_machine_key, file_at, machine_key_fault
from flows.stores import STORES, Target
from flows.tasks.policy import RETRIES, submit, this_run
from flows.tlc.addresses import escaped
from flows.tlc.errors import MisconfiguredBlock

_KEEP = 600  # seconds
# The id of the run whose blocks and clients are shared: this run, or its outermost parent that checked them.
_sharing_run: ContextVar[str] = ContextVar("sharing_run", default="")
# The blocks that `python -m blocks.register` makes.
_REGISTERED = {
    ("gcs-bucket", GCS_BUCKET),
    ("gcp-credentials", GCP_CREDENTIALS),
    ("sqlalchemy-connector", POSTGRES),
}
# The errors that Google's library does not catch if it cannot open the file at a path.
_UNREADABLE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def load_block(slug: str, name: str) -> Any:
    """Load a block, given its type's slug and its name. Raise `MisconfiguredBlock` if it cannot be used."""
    return _shared(_load, slug, name)


def open_store(target: Target) -> Any:
    """Open a target's store with its blocks."""
    return _shared(_open, target)


def _shared(make: Callable[..., Any], *names: Any) -> Any:
    """Return what `make` makes of these names. The tasks of a run share it, and so do the runs that are a part of it.

    Loading a block, and connecting to Google with a new token, take longer than many a task. After ten minutes, or after
    `forget_stores`, both are done again: a person may have edited the block.
    """
    run = _sharing_run.get() or this_run()
    return _made(run, int(time.monotonic() // _KEEP), make, *names) if run else make(*names)


@lru_cache(maxsize=16)
def _made(run: str, period: int, make: Callable[..., Any], *names: Any) -> Any:
    return make(*names)


def forget_stores() -> None:
    """Load blocks again when they are needed next."""
    _made.cache_clear()


def _load(slug: str, name: str) -> Any:
    from google.auth.exceptions import GoogleAuthError

    if not re.fullmatch(
        r"[a-z0-9-]{1,200}", name
    ):  # part of a URL of Prefect's API, where ../ would reach another kind
        raise MisconfiguredBlock(
            f"{escaped(name, 80)!r} is not the name of a block: use 1 to 200 of a-z, 0-9 and -. Nothing was started."
        )
    kind: type[Block] = resolve_name(_BLOCKS[slug])
    expand_machine_key()
    try:
        return kind.load(name)
    except (GoogleAuthError, *_UNREADABLE) as error:
        raise MisconfiguredBlock(
            f"block {slug}/{name} has no usable Google credentials ({type(error).__name__}): {_what_to_do(kind, name)}"
        ) from None
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, ValidationError):
            raise
        if "Unable to find block document" in str(error):
            make = "with `python -m blocks.register`" if (slug, name) in _REGISTERED else "in the UI"
            raise MisconfiguredBlock(
                f"block {slug}/{name} does not exist; make it {make}, or name another block: `prefect block ls` lists them."
            ) from None
        if isinstance(error, RuntimeError) and (wrong := _key_file_of(kind, name)):
            raise MisconfiguredBlock(f"block {slug}/{name}: {wrong}") from None
        # The text of a validation error may quote a secret.
        raise MisconfiguredBlock(
            f"block {slug}/{name} has invalid values ({type(error).__name__}); edit it in the UI."
        ) from None


def _what_to_do(kind: type[Block], name: str) -> str:
    """Return what to do about unusable Google credentials: the block's own, or those of the machine."""
    if wrong := _key_file_of(kind, name):
        return wrong
    if _credentials(kind, name).get("service_account_info"):
        return "its service_account_info is not a usable key; make the block again (python -m blocks.register)."
    if wrong := machine_key_fault():
        return f"it has no key of its own, and {wrong}"
    return f"put a service-account JSON into it, or set {MACHINE_KEY}, or run where the machine has a service account."


def _key_file_of(kind: type[Block], name: str) -> str:
    """Return the problem of the key file that a block names; "" if it names none."""
    path = _credentials(kind, name).get("service_account_file")
    if not path:
        return ""
    try:
        file_at(path)
    except BadValue as wrong:
        why = f"but {wrong}"
    else:
        why = "which is not a usable key"
    return (
        f"service_account_file names {path!r}, {why}; put the service account's JSON itself into the block, as"
        " `python -m blocks.register` does: the block then works on every machine."
    )


def _credentials(kind: type[Block], name: str) -> dict[str, Any]:
    """Return a block's Google credentials as the server stores them, without their secrets."""
    document, _ = cast(Any, sync_compatible(kind._get_block_document))(name)
    stored: dict[str, Any] = document.data
    return stored.get("gcp_credentials") or stored


def _open(target: Target) -> Any:
    return STORES[target.store].open(target, load_block)


# The types of blocks that open a store. Their packages are imported when a block is loaded, because that takes seconds.
_BLOCKS = {
    "gcs-bucket": "prefect_gcp.cloud_storage:GcsBucket",
    "gcp-credentials": "prefect_gcp.credentials:GcpCredentials",
    "sqlalchemy-connector": "prefect_sqlalchemy:SqlAlchemyConnector",
}


_checked: ContextVar[frozenset[Target]] = ContextVar("checked", default=frozenset())


def require_usable(*targets: Target) -> None:
    """Raise `MisconfiguredBlock` unless the stores can be used. A run calls it once, before any other work."""
    for target in targets:
        submit(check_store, target).result()
    mark_checked(targets)


def mark_checked(targets: Iterable[Target]) -> None:
    """Record that this run has checked the stores. From now on, the runs that are a part of it share them."""
    _sharing_run.set(_sharing_run.get() or this_run())
    _checked.set(_checked.get() | {*targets})


def is_checked(target: Target) -> bool:
    """Return whether this run, or the run that it is a part of, has checked the store already."""
    return target in _checked.get()


@task(name="check", task_run_name="check {target.title}", **RETRIES)
def check_store(target: Target) -> None:
    """Raise `MisconfiguredBlock` unless the store can be used."""
    open_store(target).check()
