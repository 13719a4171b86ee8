"""Estimate a back-fill: `python -m flows.tasks.plan --since 2009-01 --until 2024-05`. It contacts no server."""

import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flows.connectors.known_months import known_file
from flows.stores import with_lake
from flows.tlc.catalog import months_between
from flows.tlc.errors import TripDataError
from flows.tlc.plan import Figures, Plan
from flows.tlc.sources import TEMPLATES
from flows.tlc.trips import COLORS, Store

_STORES: tuple[Store, ...] = get_args(Store)
_MACHINES = (1, 4, 16)


def plan_of(since: str, until: str, colors: list[str], into: Iterable[Store], figures: Figures) -> tuple[Plan, int]:
    """Return the plan for the months with known files, and the number of all other months."""
    months = months_between(colors, since, until)
    files = {month: known_file(month.url(TEMPLATES["official"])) for month in months}
    known = {month: file for month, file in files.items() if file}
    return Plan(known, with_lake(into), figures), len(files) - len(known)


def show(plan: Plan, unknown: int) -> None:
    """Print a plan."""
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(
        f"{len(plan.months):,} files, {sum(file.size for file in plan.months.values()) / 1e9:,.1f} GB,"
        f" {plan.rows:,} rows; {plan.size / 1e9:,.1f} GB to download"
    )
    if unknown:
        console.print(f"{unknown:,} more months are not in known_months.csv: their sizes are not counted.")
    table = Table("machines", "time", "full first", "machines' cost", box=box.SIMPLE)
    for machines in _MACHINES:
        estimate = plan.on(machines)
        hours, minutes = divmod(round(estimate.seconds / 60), 60)
        table.add_row(
            str(machines), f"{hours} h {minutes:02d} min", estimate.limit, f"US$ {estimate.machine_cost:,.2f}"
        )
    console.print(table)
    parts = ", ".join(f"{name} {seconds / 3600:,.1f} h" for name, seconds in plan.work.items())
    console.print(f"One machine's work: {parts}. Storage: US$ {plan.storage_cost:,.2f} per month.")
    for line in plan.quotas:
        console.print(line)


def main(
    since: Annotated[str, typer.Option(help="First month, such as 2009-01 or 2009; empty for TLC's first month.")] = "",
    until: Annotated[str, typer.Option(help="Last month; empty for the current one.")] = "",
    colors: Annotated[list[str], typer.Option(help="Whose trips; repeat it for each color.")] = list(COLORS),  # noqa: B006
    into: Annotated[list[str], typer.Option(help="Which stores; repeat it for each store.")] = list(_STORES),  # noqa: B006
    figures: Annotated[
        Path | None, typer.Option(help="bench/results.json of this machine, which `make bench` writes.")
    ] = None,
    download: Annotated[float, typer.Option(help="MB per second from the source to one machine.")] = 20.0,
    database_cores: Annotated[int, typer.Option(help="Cores of the Postgres server.")] = 4,
) -> None:
    """Print files, bytes and rows of a back-fill, and its time and cost on 1, 4 and 16 machines."""
    try:
        if unknown := set(into) - set(_STORES):
            raise TripDataError(f"store {', '.join(sorted(unknown))} is unknown; use {', '.join(_STORES)}.")
        if download <= 0 or database_cores < 1:
            raise TripDataError(f"download is {download} and database_cores is {database_cores}; give more than 0.")
        own = replace(_figures(figures), download_bytes=download * 1e6, database_cores=database_cores)
        show(*plan_of(since, until, colors, [store for store in _STORES if store in into], own))
    except TripDataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


def _figures(results: Path | None) -> Figures:
    if results is None:
        return Figures()
    try:
        records = json.loads(results.read_text("utf-8"))["records"]
        _ = records[0]  # without any, the figures would be the defaults
        return Figures.measured(records)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise TripDataError(
            f"{results} cannot be read as the results of `make bench` ({type(error).__name__}); run `make bench` first."
        ) from None


if __name__ == "__main__":
    typer.run(main)
