"""A month is staged while its file is extracted. If that fails, it is staged afterwards; nothing else changes."""

import logging
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from flows.connectors.bucket import Bucket, Object
from flows.connectors.growing_file import Aborted, GrowingFile
from flows.connectors.web import Download
from flows.etl_web_gcs import etl_web_gcs
from flows.ingest_data import ingest_data
from flows.stores.database import Database
from flows.stores.lake import Lake
from flows.tasks.early import EarlyStaging, _Attempt
from flows.tlc.errors import TripDataError
from flows.tlc.manifest import RawFile, StagedMonth
from flows.tlc.sources import PublishedFile
from flows.tlc.trips import Terms, TripMonth
from tests.flows.conftest import Runs, until
from tests.stores import Stores, as_published, same, with_passengers


class Staged:
    """Records each call of `stage` of a store, whether the file was still growing, and each call of `discard`."""

    def __init__(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.early: list[bool] = []
        self.results: list[StagedMonth] = []
        self.discarded: list[StagedMonth] = []
        real, discard = store.stage, store.discard

        def stage(*arguments: Any) -> StagedMonth:
            self.early.append(isinstance(arguments[-1], GrowingFile))
            staged: StagedMonth = real(*arguments)
            self.results.append(staged)
            return staged

        def discarded(self_: Any, month: StagedMonth) -> None:
            self.discarded.append(month)
            discard(self_, month)

        monkeypatch.setattr(store, "stage", stage)
        monkeypatch.setattr(store, "discard", discarded)


def no_staging_left(ours: Stores, month: TripMonth) -> bool:
    tables = ours.query("SELECT relname FROM pg_class WHERE relname LIKE %s", "%staging%")
    objects = [key for key in ours.objects("staging/") if month.stem in key]
    return not objects and not [name for (name,) in tables if month.postgres_partition in name]


@pytest.fixture(params=["lake csv", "lake parquet", "postgres"])
def into(request: pytest.FixtureRequest, ours: Stores, runs: Runs, mirrored_month: TripMonth) -> Any:
    """Return a function that loads a month, its store's class, and a function that compares the store with the file."""
    month = mirrored_month
    ending = ".csv.gz" if request.param == "lake csv" else ".parquet"
    source = ours.mirror if ending == ".csv.gz" else ours.official

    def expected() -> Any:
        trips = as_published(ours.site.file(f"{month.stem}{ending}"), month)
        return with_passengers(trips) if request.param == "postgres" else trips

    if request.param == "postgres":
        return (
            month,
            ending,
            Database,
            lambda: runs.postgres(month, source=source),
            lambda: same(ours.in_postgres(month), expected()),
        )
    return month, ending, Lake, lambda: runs.lake(month, source=source), lambda: same(ours.in_lake(month), expected())


def test_a_month_is_staged_while_its_file_is_extracted(
    into: Any, ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    month, _, store, load, is_as_published = into
    staged = Staged(store, monkeypatch)
    read: list[str] = []
    real = Bucket.read
    monkeypatch.setattr(Bucket, "read", lambda self, key, *more: read.append(key) or real(self, key, *more))
    manifest = load().manifest
    assert staged.early == [True]
    assert is_as_published()
    assert not [key for key in read if key.startswith("raw/")]  # the file was not read again
    assert manifest.sha256
    assert manifest.size
    assert no_staging_left(ours, month)
    assert load().status == "unchanged"


def test_if_early_staging_fails_the_month_is_staged_again(
    into: Any, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    month, _, store, load, is_as_published = into
    real = store.stage

    def stage(self: Any, raw: RawFile, *arguments: Any) -> StagedMonth:
        if isinstance(arguments[-1], GrowingFile):
            raise ZeroDivisionError
        staged: StagedMonth = real(self, raw, *arguments)
        return staged

    monkeypatch.setattr(store, "stage", stage)
    assert load().status == "loaded"
    assert is_as_published()
    assert f"{month} is staged again: ZeroDivisionError" in runs.logs()
    assert no_staging_left(ours, month)


def test_a_download_that_breaks_off_and_is_retried_begins_a_new_staging(
    into: Any, ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    month, ending, store, load, is_as_published = into
    staged = Staged(store, monkeypatch)
    real = Download.__iter__
    broken: list[str] = []

    def pieces(self: Download) -> Iterator[bytes]:
        if broken:
            yield from real(self)
            return
        yield next(real(self))[:100_000]
        until(lambda: bool(staged.early) or ending == ".parquet", 60)
        broken.append("after some bytes")
        raise ConnectionError("cut off")

    monkeypatch.setattr(Download, "__iter__", pieces)
    load()
    assert broken
    assert staged.early == ([True] if ending == ".parquet" else [True, True])  # Parquet is staged once it is complete
    assert len(staged.results) == 1
    assert is_as_published()
    assert no_staging_left(ours, month)


def test_an_extraction_that_fails_after_the_last_byte_stops_the_staging_at_once(month: TripMonth) -> None:
    published = PublishedFile(
        trip_month=month, url="http://site/file.parquet", ending=".parquet", etag=None, last_modified=None, size=None
    )
    early = EarlyStaging(published, Terms(), "run")
    with suppress(ConnectionError), early.receiving(SimpleNamespace(stage=lambda *_: None)) as growing:
        growing.complete("its sha256")
        raise ConnectionError("cut off")
    with pytest.raises(Aborted):
        growing.require()
    early.close()


def test_a_staging_whose_upload_fails_is_discarded(
    mirrored_month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = Staged(Lake, monkeypatch)
    complete = threading.Event()
    real = _Attempt._stage

    def stage(*arguments: Any) -> None:
        real(*arguments)
        complete.set()

    monkeypatch.setattr(_Attempt, "_stage", stage)
    written = Bucket.written
    failed: list[str] = []

    def fails_once(self: Bucket, key: str) -> Object:
        if not failed and key.startswith("raw/"):
            assert complete.wait(60)
            failed.append("the month is staged, and whether its raw file was uploaded is unknown")
            raise ConnectionError("cut off")
        return written(self, key)

    monkeypatch.setattr(Bucket, "written", fails_once)
    runs.lake(mirrored_month)
    assert staged.early == [True, False]  # the retry finds the whole raw file
    assert staged.discarded == staged.results[:1]
    assert no_staging_left(ours, mirrored_month)


def touched(month: TripMonth, ours: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish the month's file once more, with the same bytes, as a server does that was set up again."""
    monkeypatch.setattr(ours.site, "etag", lambda path: '"touched"')
    path = ours.site.file(f"{month.stem}.parquet")
    os.utime(path, (0, path.stat().st_mtime + 60))


@pytest.mark.parametrize("store", [Lake, Database])
def test_a_file_with_the_same_bytes_leaves_no_staging(
    store: Any, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = runs.lake if store is Lake else runs.postgres
    load(month)
    touched(month, ours, monkeypatch)
    staged = Staged(store, monkeypatch)
    assert load(month).status == "unchanged"
    assert staged.early == [True]
    assert no_staging_left(ours, month)


def test_a_file_with_the_same_bytes_is_not_uploaded_again(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake(month)
    touched(month, ours, monkeypatch)
    staged = Staged(Lake, monkeypatch)
    written: list[str] = []
    writer = Bucket.writer
    monkeypatch.setattr(
        Bucket, "writer", lambda self, key, *more, **named: written.append(key) or writer(self, key, *more, **named)
    )
    assert runs.lake(month).status == "unchanged"
    assert staged.early == [True]  # the file was downloaded
    assert not [key for key in written if key.startswith("raw/")]


def test_without_room_for_the_file_nothing_is_downloaded_and_nothing_is_left(
    into: Any, ours: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    month, _, store, load, is_as_published = into
    staged = Staged(store, monkeypatch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        patch.setattr(Download, "__iter__", lambda _: pytest.fail("downloaded"))
        with pytest.raises(TripDataError, match="point TRIPS_SCRATCH at a larger disk"):
            load()
    assert staged.early == []
    assert not [key for key in ours.objects() if month.stem in key]
    assert load().status == "loaded"
    assert is_as_published()


@pytest.mark.parametrize("flow", [etl_web_gcs, ingest_data], ids=["lake", "postgres"])
def test_a_file_that_is_refused_early_is_refused_with_the_same_error_and_nothing_is_staged(
    flow: Any, month: TripMonth, ours: Stores, runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    other = TripMonth(month.color, month.year, month.month % 12 + 1)
    ours.site.put(f"{month.stem}.parquet", ours.site.file(f"{other.stem}.parquet"))
    caplog.set_level(logging.INFO)
    error = str(runs.of(flow, month).result(raise_on_failure=False))
    assert "this is the file of another month" in error
    assert "staged again" not in caplog.text
    assert no_staging_left(ours, month)
