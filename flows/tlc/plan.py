"""Estimate a back-fill: how long it takes on several machines, which part limits it, and what it costs.

The estimate uses measured figures. A machine's own figures come from `make bench`. The prices and quotas are Google's list
prices and default quotas; check them for your region before you rely on them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flows.tlc.catalog import KnownFile
from flows.tlc.trips import Store, TripMonth


@dataclass(frozen=True)
class Figures:
    """The speed of one machine. The defaults are those of docs/speed.md: two cores of a virtual machine."""

    lake_rows: float = 820_000  # per second, web → lake
    database_rows: float = 430_000  # per second, web → Postgres
    warehouse_seconds: float = 1.2  # per month, lake → BigQuery
    month_seconds: float = 0.5  # per month and store, whatever its size
    batch_seconds: float = 10.0  # until a batch's process has started
    batch: int = 8  # months
    download_bytes: float = 20e6  # per second, from the source to one machine
    database_cores: int = 4  # of the Postgres server; one COPY keeps one core busy
    machine_price: float = 0.07  # US$ per hour, for two cores

    @classmethod
    def measured(cls, records: Sequence[Mapping[str, Any]]) -> "Figures":
        """Return the figures of the machine that wrote the records of `make bench`; the default of each one that is missing."""
        ours = {record["work"]: record for record in records if record["contender"] == "ours"}
        found: dict[str, float] = {}
        for work, name in (("web_to_lake_parquet", "lake_rows"), ("web_to_postgres_first", "database_rows")):
            if work in ours:
                found[name] = ours[work]["rows"] / ours[work]["net_s"]
        if "lake_to_warehouse" in ours:
            found["warehouse_seconds"] = ours["lake_to_warehouse"]["net_s"]
        return replace(cls(), **found)  # type: ignore[arg-type]


# US$ per GB and month, of standard storage in a region, and of BigQuery's active logical storage.
_BUCKET_PRICE, _BIGQUERY_PRICE = 0.020, 0.020
_ROW_BYTES = 150  # of a trip in BigQuery, where a number or time has 8 bytes
_JOBS_PER_TABLE_AND_DAY = 1_500  # BigQuery load jobs
_DML_AT_ONCE = 22  # statements that change one table, 2 running and 20 waiting: here the table `loads`
_CONNECTIONS = 3  # to Postgres, for one month at most: its lock, and two that compare a re-published month
_AT_ONCE = 2  # months that one machine processes at the same time


@dataclass(frozen=True)
class Estimate:
    """A back-fill on a number of machines."""

    machines: int
    seconds: float
    limit: str
    machine_cost: float  # US$


@dataclass(frozen=True)
class Plan:
    """What a back-fill has to do."""

    months: Mapping[TripMonth, KnownFile]
    into: Collection[Store]
    figures: Figures

    @property
    def size(self) -> int:
        """Return the bytes that the source sends. The lake and the database each download a month's file."""
        once = sum(file.size for file in self.months.values())
        return once * sum(store in self.into for store in ("lake", "database"))

    @property
    def rows(self) -> int:
        """Return the number of rows in the files."""
        return sum(file.rows for file in self.months.values())

    @property
    def work(self) -> dict[str, float]:
        """Return the seconds of one machine that each part of the work takes."""
        each, f = len(self.months), self.figures
        work = {"start": each / f.batch * f.batch_seconds, "fixed": each * len(self.into) * f.month_seconds}
        if "lake" in self.into:
            work["lake"] = self.rows / f.lake_rows
        if "database" in self.into:
            work["database"] = self.rows / f.database_rows
        if "warehouse" in self.into:
            work["warehouse"] = each * f.warehouse_seconds
        return work

    def on(self, machines: int) -> Estimate:
        """Return the estimate for a number of machines: the slowest of its limits decides."""
        f = self.figures
        limits = {
            "the machines' cores": sum(self.work.values()) / machines,
            "each machine's download (TLC's CDN)": self.size / f.download_bytes / machines,
        }
        if "database" in self.into:
            limits["Postgres' cores"] = self.rows / f.database_rows / f.database_cores
        limit, seconds = max(limits.items(), key=lambda each: each[1])
        return Estimate(machines, seconds, limit, machines * seconds / 3600 * f.machine_price)

    @property
    def storage_cost(self) -> float:
        """Return US$ per month of storage: raw and canonical files in the lake, and the tables of BigQuery."""
        gigabytes = sum(file.size for file in self.months.values()) / 1e9
        lake = 2 * gigabytes * _BUCKET_PRICE if "lake" in self.into else 0.0
        return lake + (self.rows * _ROW_BYTES / 1e9 * _BIGQUERY_PRICE if "warehouse" in self.into else 0.0)

    @property
    def quotas(self) -> list[str]:
        """Return each quota of the services, with what it allows and what this back-fill needs."""
        lines = []
        if "warehouse" in self.into:
            most = max((sum(m.color == c for m in self.months) for c in {m.color for m in self.months}), default=0)
            lines.append(f"BigQuery: {most:,} load jobs for one table; {_JOBS_PER_TABLE_AND_DAY:,} a day are allowed.")
            lines.append(
                f"BigQuery: each month changes `loads`; {_DML_AT_ONCE} such statements may run or wait at once, which is"
                f" {_DML_AT_ONCE // _AT_ONCE} machines at {_AT_ONCE} months each. Beyond that, BigQuery may refuse one, and its"
                " task is tried again."
            )
        if "lake" in self.into:
            lines.append(
                "GCS: one write per second to one object; each month has its own objects, so this is no limit."
            )
        if "database" in self.into:
            each = _CONNECTIONS * _AT_ONCE
            lines.append(
                f"Postgres: {each} connections per machine; its default of 100 is enough for {90 // each} machines."
            )
        return lines
