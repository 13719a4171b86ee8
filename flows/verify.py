"""Compare what the stores have with what was published: `python flows/verify.py --depth rows --sample 3`."""

import gc
import secrets
import sys
from contextlib import closing
from pathlib import Path

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow, get_run_logger

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.stores import STORES, Target
from flows.tasks.command import run_as_program
from flows.tasks.months import named, reason_of, several_at_once
from flows.tasks.policy import flow_options, submit
from flows.tasks.stores import require_usable
from flows.tasks.verify import find_months, report_verified, verify_month
from flows.tlc.catalog import months_between
from flows.tlc.errors import TripDataError, VerificationFailed
from flows.tlc.trips import COLORS, AtLeastOne, AtLeastZero, Bound, Color, Dataset, Store, TripMonth, Via
from flows.tlc.verify import Depth, Verified, sampled

_COLORS: list[Color] = list(COLORS)
_STORES: list[Store] = list(STORES)


@flow(name="verify", flow_run_name=named("verify {depth}: {stores}"), **flow_options())
def verify(
    colors: list[Color] = _COLORS,
    since: Bound = "",
    until: Bound = "",
    stores: list[Store] = _STORES,
    depth: Depth = "counts",
    sample: AtLeastZero = 0,
    seed: AtLeastZero = 0,
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    dataset: Dataset = DATASET,
    postgres_block: str = POSTGRES,
    at_once: AtLeastOne = 2,
    via: Via = "load_job",
) -> list[Verified]:
    """Compare what the stores have with what was published, and fail if anything differs. No trip is changed.

    Args:
        colors: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        since: First month to verify, such as 2019-01 or 2019; empty for TLC's first.
        until: Last month to verify, such as 2021-12 or 2021; empty for the current month.
        stores: Which stores to verify: lake, warehouse (BigQuery), database (Postgres).
        depth: counts (manifests, counts, keys), rows (also each row against the lake), raw (also the lake against its raw files).
        sample: How many months of each color to verify, chosen at random; 0 for all.
        seed: Seed of the random choice of the sample; 0 for another choice in every run.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        dataset: BigQuery dataset to verify.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
        at_once: How many months are verified at the same time.
        via: How BigQuery gets a copy of the lake's month to compare with: load_job, or dataframe if it cannot read the bucket.
    """
    if not stores:
        raise TripDataError("stores is empty; name at least one of lake, warehouse, database. Nothing was verified.")
    window = set(months_between(colors, since, until))
    sampled([], sample, seed)  # raises for a negative sample before any work
    target = Target("lake", block_name, credentials_block, dataset, postgres_block, via)
    targets = [target.with_store(store) for store in STORES if store in stores]
    # A run that only counts rows in Postgres needs no lake.
    uses_lake = depth != "counts" or any(STORES[into.store].files != "machine" for into in targets)
    require_usable(*({*targets, target} if uses_lake else targets))

    log = get_run_logger()
    found = {into.store: submit(find_months, into, colors).result() for into in targets}
    there = {store: months for store, (months, _) in found.items()}
    if {"lake", "warehouse"} <= there.keys():  # BigQuery is loaded from the lake only
        there["lake"] |= there["warehouse"]
    for into in targets:
        if not there[into.store]:
            log.warning("%s has no month; if months were lost, see Restore in docs/operations.md", into.title)
    seed = seed or secrets.randbelow(10**6) + 1
    chosen = sampled(window & set().union(*there.values()), sample, seed)
    if sample:
        log.info("%s months chosen with seed %s: %s", len(chosen), seed, ", ".join(map(str, chosen)))

    def verify_everywhere(trip_month: TripMonth) -> list[Verified]:
        # The lake comes first: other stores are not compared with a month that is damaged there.
        return [
            submit(verify_month, trip_month, into, depth, uses_lake).result()
            for into in targets
            if trip_month in there[into.store]
        ]

    results: list[Verified] = [stray for _, strays in found.values() for stray in strays]
    failed: list[tuple[str, str]] = []
    with closing(several_at_once(chosen, at_once, verify_everywhere)) as ends:
        for trip_month, end in ends:
            if isinstance(end, Exception):
                failed.append((str(trip_month), f"could not be verified: {reason_of(trip_month, end)}"))
            else:
                results += end
    differ = [str(result) for result in results if result.status == "differs"]
    for text in (*differ, *(reason for _, reason in failed)):
        log.error("%s", text)
    log.info("%s months verified: %s of %s results differ", len(chosen), len(differ), len(results) + len(failed))
    report_verified("verify-months", results, failed)
    if differ or failed:
        raise VerificationFailed(
            "\n  - ".join(["the stores differ from what was published:", *differ, *(r for _, r in failed)])
        )
    return results


if __name__ == "__main__":
    run_as_program(verify)
