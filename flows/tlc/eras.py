"""What TLC's files have looked like, as rows: which columns a file of a month must have, and what each is called now.

TLC adds a column: add it to `schema.TRIP_COLUMNS`, and an era here that begins with its first month.
Facts read off the published files themselves; names differ in case and blanks between eras, so case and blanks do not count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from flows.tlc.errors import SchemaMismatch
from flows.tlc.schema import TRIP_COLUMNS, Column, Kind
from flows.tlc.sources import Ending
from flows.tlc.trips import TripMonth


@dataclass(frozen=True)
class Era:
    """The months from `first` on, until the next era of the same color and format, whose files must have `columns`."""

    color: str
    format: str
    first: str
    columns: str

    @property
    def name(self) -> str:
        """How manifests, logs and errors call it."""
        return f"{self.color} {self.format} since {self.first}"


_YELLOW = (
    "VendorID tpep_pickup_datetime tpep_dropoff_datetime passenger_count trip_distance RatecodeID store_and_fwd_flag"
    " PULocationID DOLocationID payment_type fare_amount extra mta_tax tip_amount tolls_amount improvement_surcharge"
    " total_amount congestion_surcharge"
)
_GREEN = (
    "VendorID lpep_pickup_datetime lpep_dropoff_datetime store_and_fwd_flag RatecodeID PULocationID DOLocationID"
    " passenger_count trip_distance fare_amount extra mta_tax tip_amount tolls_amount ehail_fee improvement_surcharge"
    " total_amount payment_type trip_type congestion_surcharge"
)
_FHV_CSV = "dispatching_base_num pickup_datetime dropoff_datetime PULocationID DOLocationID SR_Flag"
_FHVHV_CSV = f"hvfhs_license_num {_FHV_CSV}"
_FHVHV = (
    "hvfhs_license_num dispatching_base_num originating_base_num request_datetime on_scene_datetime pickup_datetime"
    " dropoff_datetime PULocationID DOLocationID trip_miles trip_time base_passenger_fare tolls bcf sales_tax"
    " congestion_surcharge airport_fee tips driver_pay shared_request_flag shared_match_flag access_a_ride_flag"
    " wav_request_flag wav_match_flag"
)

ERAS = (
    Era("yellow", "csv", "2019-01", _YELLOW),
    Era("yellow", "parquet", "2019-01", f"{_YELLOW} airport_fee"),
    Era("yellow", "parquet", "2025-01", f"{_YELLOW} airport_fee cbd_congestion_fee"),
    Era("yellow", "parquet", "2026-06", f"{_YELLOW} airport_fee cbd_congestion_fee request_source"),
    Era("green", "csv", "2019-01", _GREEN),
    Era("green", "parquet", "2019-01", _GREEN),
    Era("green", "parquet", "2025-01", f"{_GREEN} cbd_congestion_fee"),
    Era("green", "parquet", "2026-06", f"{_GREEN} cbd_congestion_fee request_source"),
    Era("fhv", "csv", "2019-01", _FHV_CSV),
    Era("fhv", "parquet", "2019-01", f"{_FHV_CSV} Affiliated_base_number"),
    Era("fhvhv", "csv", "2019-02", _FHVHV_CSV),
    Era("fhvhv", "parquet", "2019-02", _FHVHV),
    Era("fhvhv", "parquet", "2025-01", f"{_FHVHV} cbd_congestion_fee"),
)

# Which published Arrow types a kind can come from without a guess; a value that will not convert is quarantined.
_CONVERTIBLE: dict[Kind, tuple[str, ...]] = {
    "integer": ("int", "uint", "double", "float", "null", "string", "large_string"),
    "number": ("int", "uint", "double", "float", "null", "string", "large_string"),
    "datetime": ("timestamp", "null", "string", "large_string"),
    "text": ("string", "large_string", "null"),
}


@dataclass(frozen=True)
class Shape:
    """How one file's columns map to the canonical ones: `published[i]` is read as `canonical[i]`."""

    era: Era
    published: tuple[str, ...]
    canonical: tuple[Column, ...]


def era_of(trip_month: TripMonth, ending: Ending) -> Era:
    """The era a month's file belongs to; `SchemaMismatch` where the table has none."""
    file_format = "parquet" if ending == ".parquet" else "csv"
    first = f"{trip_month.year}-{trip_month.month:02d}"
    known = [e for e in ERAS if (e.color, e.format) == (trip_month.color, file_format)]
    begun = [e for e in known if e.first <= first]
    if not begun:
        since = f"the eras known begin with {known[0].first}" if known else "no era is known"
        raise SchemaMismatch(
            f"{trip_month}: how TLC's {file_format} files of that month look is not known here ({since});"
            " add a row to flows/tlc/eras.py, or take the month from another source."
        )
    return max(begun, key=lambda e: e.first)


def _plain(name: str) -> str:
    return name.strip().casefold()


def _lacking(era: Era, found: Sequence[str]) -> list[str]:
    return [name for name in era.columns.split() if _plain(name) not in found]


def match(
    trip_month: TripMonth, ending: Ending, names: Sequence[str], types: Sequence[pa.DataType] | None = None
) -> Shape:
    """Map a file's column names (and Arrow types, where it has any) to the canonical columns of its color.

    A column of today's schema is welcome in any month; one that no schema knows, one that the era has and
    the file lacks, one given twice, or one of a kind that cannot be converted raises `SchemaMismatch` with a line for each.
    """
    found = [_plain(name) for name in names]
    era = era_of(trip_month, ending)
    # A CSV may also be TLC's Parquet saved as one, with the columns of that.
    if _lacking(era, found) and not _lacking(of_parquet := era_of(trip_month, ".parquet"), found):
        era = of_parquet
    canonical = {_plain(column.name): column for column in TRIP_COLUMNS[trip_month.color]}

    wrong = [f"{name!r}: in the file, unknown to the schema" for name in names if _plain(name) not in canonical]
    wrong += [f"{name!r}: in the file more than once" for name in dict.fromkeys(names) if found.count(_plain(name)) > 1]
    wrong += [f"{name!r}: not in the file, expected since {era.first}" for name in _lacking(era, found)]
    for name, published in zip(names, types or (), strict=False):
        column = canonical.get(_plain(name))
        if column and str(published).split("[")[0].rstrip("0123456789") not in _CONVERTIBLE[column.kind]:
            wrong.append(f"{name!r}: published as {published}, which is no {column.kind}")
        elif column and pa.types.is_timestamp(published) and published.tz is not None:
            wrong.append(f"{name!r}: published with time zone {published.tz}; TLC's times are New York wall-clock")
    if wrong:
        raise SchemaMismatch(
            f"{trip_month}: the columns are not those of {era.name}. Nothing was loaded.\n"
            + "\n".join(f"  - {line}" for line in wrong)
            + "\nIf TLC changed its files: add the column to flows/tlc/schema.py and an era to flows/tlc/eras.py."
        )
    return Shape(era, tuple(names), tuple(canonical[name] for name in found))
