"""Google Cloud's permissions: what each API call of the clients needs, and a Google Cloud that refuses all others.

The stand-ins ask nobody for a permission. A `Gate` stands before them. It answers 403 to a call that needs more than a role has.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.strict_lake import StrictLake

_OBJECTS = r"/storage/v1/b/[^/]+/o"
_PROJECT = r"(?:/bigquery/v2)?/projects/[^/]+"
_TABLES = rf"{_PROJECT}/datasets/[^/]+/tables"

# https://cloud.google.com/storage/docs/access-control/iam-json: replacing an object needs `delete`, too: see `Gate`.
# https://cloud.google.com/bigquery/docs/access-control: the service account that created a job may read it.
_NEEDS: tuple[tuple[str, str, str], ...] = (
    ("GET", r"/storage/v1/b/[^/]+", "storage.buckets.get"),
    ("GET", _OBJECTS, "storage.objects.list"),
    ("GET", rf"(?:/download)?{_OBJECTS}/[^/]+", "storage.objects.get"),
    ("POST|PUT", rf"(?:/resumable)?/upload{_OBJECTS}(?:/[^/]+)?", "storage.objects.create"),
    ("DELETE", rf"(?:/resumable)?/upload{_OBJECTS}(?:/[^/]+)?", "storage.objects.create"),  # ends an own upload
    ("POST", rf"{_OBJECTS}/[^/]+/(?:rewriteTo|copyTo)/.*", "storage.objects.get storage.objects.create"),
    ("PATCH", rf"{_OBJECTS}/[^/]+", "storage.objects.get storage.objects.update"),
    ("DELETE", rf"{_OBJECTS}/[^/]+", "storage.objects.delete"),
    ("GET", rf"{_PROJECT}/datasets/[^/]+", "bigquery.datasets.get"),
    ("POST", rf"{_PROJECT}/datasets", "bigquery.datasets.create"),
    ("POST", _TABLES, "bigquery.tables.create"),
    ("GET", rf"{_TABLES}/[^/]+", "bigquery.tables.get"),
    ("PATCH|PUT", rf"{_TABLES}/[^/]+", "bigquery.tables.update"),
    ("DELETE", rf"{_TABLES}/[^/]+", "bigquery.tables.delete"),
    ("GET", rf"{_TABLES}/[^/]+/data", "bigquery.tables.getData"),
    ("POST|PUT", rf"(?:/resumable)?(?:/upload)?{_PROJECT}/jobs", "bigquery.jobs.create"),
    ("POST", rf"{_PROJECT}/queries", "bigquery.jobs.create"),
    ("GET", rf"{_PROJECT}/(?:jobs|queries)/[^/]+", ""),
)


def needs(method: str, path: str, body: bytes = b"") -> set[str]:
    """The permissions that a call needs. AssertionError for a call that is not in the table."""
    found = [
        words for methods, pattern, words in _NEEDS if method in methods.split("|") and re.fullmatch(pattern, path)
    ]
    assert found, f"which permission does {method} {path} need?"
    needed = set(found[0].split())
    if "bigquery.jobs.create" in needed and body.startswith(b"{"):
        needed |= _of_job(json.loads(body))
    elif "/jobs" in path and "upload" in path:
        needed |= _LOADS
    return needed


_LOADS = {"bigquery.tables.create", "bigquery.tables.updateData"}  # of CREATE_IF_NEEDED, the default


def _of_job(job: dict[str, Any]) -> set[str]:
    configuration = job.get("configuration", {})
    if load := configuration.get("load"):
        never = load.get("createDisposition") == "CREATE_NEVER"
        return (
            {"bigquery.tables.updateData"}
            | ({"storage.objects.get"} if load.get("sourceUris") else set())
            | (set() if never else _LOADS)
        )
    query = str(configuration.get("query", job).get("query", ""))
    written = re.search(r"\b(?:MERGE|INSERT|DELETE|UPDATE)\b", query)
    return {"bigquery.tables.getData"} | ({"bigquery.tables.updateData"} if written else set())


class Gate(StrictLake):
    """A stand-in that lets only the calls of a role through, and notes what was needed and what was refused."""

    def __init__(self, behind: str, role: set[str] | None) -> None:
        super().__init__(behind)
        self.role, self.needed, self.denied = role, set[str](), list[str]()

    def judge(self, method: str, path: str, body: bytes) -> int | tuple[int, str] | None:
        parts = urlsplit(path)
        needed = needs(method, parts.path, body)
        if "storage.objects.create" in needed and (name := self._replaced(parts.path, parts.query, body)):
            bucket = re.search(r".*/b/([^/]+)/o", parts.path)
            if bucket and self.generation(bucket[1], name) != "0":
                needed.add("storage.objects.delete")
        self.needed |= needed
        if self.role is None or needed <= self.role:
            return None
        lacking = ", ".join(sorted(needed - self.role))
        self.denied.append(f"{method} {parts.path}: {lacking}")
        return 403, f"the service account does not have {lacking}"

    def _replaced(self, path: str, query: str, body: bytes) -> str:
        """The object that a call would write, if it names one."""
        if copied := re.fullmatch(r".*/(?:rewriteTo|copyTo)/b/[^/]+/o/(.+)", path):
            return unquote(copied[1])
        named = re.search(r"(?:^|&)name=([^&]+)", query) or re.search(rb'"name": ?"([^"]+)"', body[:4096])
        if named is None:
            return ""
        return unquote(named[1]) if isinstance(named[1], str) else named[1].decode()


@contextmanager
def gates(role: set[str] | None, patch: pytest.MonkeyPatch, storage: str, bigquery: str) -> Iterator[list[Gate]]:
    """Gates before the lake and the warehouse, for clients that are made from now on."""
    with Gate(storage, role) as lake, Gate(bigquery, role) as warehouse, patch.context() as context:
        context.setenv("STORAGE_EMULATOR_HOST", lake.url)
        context.setenv("BIGQUERY_EMULATOR_HOST", warehouse.url)
        yield [lake, warehouse]
