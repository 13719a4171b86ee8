"""The query of an address, which may be a signature, is stored nowhere. A month is still recognised by its address."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from google.cloud import storage
from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import TaskRunSort

from flows.connectors import scratch
from flows.etl_web_gcs import etl_web_gcs
from flows.ingest_data import ingest_data
from flows.load_zones import load_zones
from flows.stores.origins import Again
from flows.tlc.addresses import lost_query, stored
from flows.tlc.errors import BadSource
from flows.tlc.manifest import Manifest
from flows.tlc.trips import TripMonth
from tests.flows.conftest import LAKE, POSTGRES, Runs, database_of
from tests.stores import Stores

CANARY = "canary-signature"
SIGNED = f"?X-Amz-Signature={CANARY}&X-Amz-Expires=60"


def test_a_query_becomes_a_digest_of_it_once() -> None:
    url = "https://h.example/green_2021-01.csv"
    assert stored(url) == url
    assert CANARY not in stored(url + SIGNED)
    assert lost_query(stored(url + SIGNED))
    assert stored(stored(url + SIGNED)) == stored(url + SIGNED) != stored(f"{url}?other")
    assert not lost_query(url + SIGNED)


async def _cache_keys() -> str:
    async with get_client() as client:
        newest = await client.read_task_runs(limit=200, sort=TaskRunSort.EXPECTED_START_TIME_DESC)
        states = [state for run in newest for state in await client.read_task_run_states(run.id)]
    keys = [run.cache_key for run in newest] + [state.state_details.cache_key for state in states]
    return "\n".join(map(str, keys))


def test_a_signature_is_in_no_store_no_result_no_cache_key_and_no_report(
    month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = ours.official + SIGNED
    first = [runs.of(flow, month, source=signed) for flow in (etl_web_gcs, ingest_data)]
    again = [runs.of(flow, month, source=signed) for flow in (etl_web_gcs, ingest_data)]
    assert again[0].result().status == again[1].result()[0].status == "unchanged"
    load_zones(
        ["lake", "database"], source=f"{ours.site.url}/misc/taxi_zone_lookup.csv{SIGNED}", block_name=LAKE,
        postgres_block=POSTGRES,
    )  # fmt: skip

    written = {
        blob.name: blob.download_as_bytes() + str(blob.metadata).encode()
        for blob in storage.Client().list_blobs(ours.bucket)
    }
    assert any("results/" in name for name in written)
    for table in ("loads", "loads_history"):
        written[table] = str(ours.query(f"SELECT * FROM {table}")).encode()
    written["comment"] = str(ours.query("SELECT obj_description('zones'::regclass)")).encode()
    written["cache keys"] = asyncio.run(_cache_keys()).encode()
    written["logs"] = runs.logs().encode()
    for store in ("lake", "database"):
        written[store] = "".join(runs.artifacts(f"{month.stem.replace('_', '-')}-{store}")).encode()
    assert b"sha256=" in written["cache keys"]
    assert all(written[name] for name in ("loads", "comment", "logs", "lake", "database"))
    assert [name for name, what in written.items() if CANARY.encode() in what] == []
    assert first[0].result().manifest.url == stored(month.url(signed))


def test_a_manifest_of_an_older_version_is_read_without_its_query_and_is_of_the_same_address(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    signed = f"{ours.official}?X-Amz-Signature=of-an-older-version"
    runs.lake(month, source=signed)
    manifest = ours.manifest(month) | {"url": month.url(signed)}
    ours.blob(month.manifest_key).upload_from_string(json.dumps(manifest))
    assert Manifest.model_validate(manifest).url == stored(month.url(signed))
    assert runs.lake(month, source=signed).status == "unchanged"


def test_a_file_that_is_gone_and_had_a_query_is_named_with_what_to_do(
    month: TripMonth, ours: Stores, runs: Runs
) -> None:
    runs.postgres(month, source=ours.official + SIGNED)
    for file in Path(scratch.folder()).glob(f"{month.stem}*"):
        file.unlink()
    store = database_of(POSTGRES)
    manifest = store.remembered(month)
    assert manifest
    store.remember(manifest.model_copy(update={"quarantined": {"made up": 1}}))
    with pytest.raises(
        BadSource, match=re.escape("cannot be fetched again: queries of addresses are not stored")
    ) as why:
        Again().look_up(month, store)
    assert CANARY not in str(why.value)
    assert "--source" in str(why.value)
