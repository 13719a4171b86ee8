"""Delete earlier editions from the lake's raw zone by a rule: `python flows/prune_editions.py --keep 2 --action delete`."""

import gc
import sys
from pathlib import Path
from typing import Annotated, Literal

if not __package__:  # run as a file: Python looks for modules in the file's folder, not in the project's
    sys.path.append(str(Path(__file__).resolve().parents[1]))
if __name__ == "__main__":
    gc.disable()  # collections take a quarter of the time of the imports; `run_as_program` turns them on again

from prefect import flow, get_run_logger
from pydantic import Field

from blocks import DATASET, GCP_CREDENTIALS, GCS_BUCKET, POSTGRES
from flows.stores import Target
from flows.tasks.command import run_as_program
from flows.tasks.editions import Listing, delete_editions, editions_listing, print_listing, report_listing, surplus
from flows.tasks.months import named
from flows.tasks.policy import submit
from flows.tasks.stores import require_usable
from flows.tlc.catalog import months_between
from flows.tlc.errors import TripDataError
from flows.tlc.trips import COLORS, AtLeastZero, Bound, Color, Dataset, Store

_COLORS: list[Color] = list(COLORS)
_STORES: list[Store] = ["lake"]
Keep = Annotated[str, Field(json_schema_extra={"pattern": r"^(all|\d+)$"})]


@flow(name="prune-editions", flow_run_name=named("prune editions: {colors}, {action}"))
def prune_editions(
    colors: list[Color] = _COLORS,
    since: Bound = "",
    until: Bound = "",
    keep: Keep = "all",
    older_than_days: AtLeastZero = 0,
    action: Literal["list", "delete"] = "list",
    stores: list[Store] = _STORES,
    block_name: str = GCS_BUCKET,
    credentials_block: str = GCP_CREDENTIALS,
    dataset: Dataset = DATASET,
    postgres_block: str = POSTGRES,
) -> Listing:
    """Delete earlier editions of files from the lake, by number or by age. Without a rule, delete nothing.

    An edition that the lake or one of `stores` has, or that was withdrawn from it, is never deleted.

    Args:
        colors: Whose trips: yellow and green taxis, for-hire vehicles (fhv), high-volume for-hire vehicles (fhvhv).
        since: First month, such as 2019-01 or 2019; empty for TLC's first.
        until: Last month, such as 2021-12 or 2021; empty for the current month.
        keep: How many earlier editions of each month to keep, newest first: a number, or all.
        older_than_days: Delete the earlier editions that were fetched more than this many days ago; 0 for no rule by age.
        action: list (show what the rule would delete) or delete.
        stores: The stores whose editions must stay. Name every store that is in use.
        block_name: Name of the GcsBucket block that is the lake.
        credentials_block: Name of the GcpCredentials block to use BigQuery with.
        dataset: BigQuery dataset.
        postgres_block: Name of the SqlAlchemyConnector block that is the database.
    """
    if keep != "all" and not keep.isdecimal():
        raise TripDataError(f"keep is {keep!r}; give a number of editions, or all. Nothing was deleted.")
    if older_than_days < 0 or (older_than_days and keep != "all"):
        raise TripDataError(
            f"keep is {keep} and older_than_days is {older_than_days}; give one of them: a number of editions to keep, or a"
            " number of days above 0. Nothing was deleted."
        )
    months = months_between(colors, since, until)
    target = Target("lake", block_name, credentials_block, dataset, postgres_block)
    targets = [target.with_store(store) for store in dict.fromkeys(("lake", *stores))]
    require_usable(*targets)
    found = submit(surplus, targets, months, None if keep == "all" else int(keep), older_than_days).result()
    if action == "delete":
        submit(delete_editions, targets, found).result()
    done = "deleted" if action == "delete" else "would be deleted"
    get_run_logger().info("%s earlier editions %s", len(found), done)
    title = f"Earlier editions that {'were' if action == 'delete' else 'would be'} deleted"
    return report_listing("prune-editions", editions_listing(title, [(edition, done) for edition in found]))


if __name__ == "__main__":
    run_as_program(prune_editions, print_listing)
