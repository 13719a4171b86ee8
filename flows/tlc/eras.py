"""The layouts of TLC's files, one per row: the columns that a month's file must have, and their current names.

If TLC adds a column, add it to `schema.TRIP_COLUMNS`, and add an era here that begins with its first month (docs/eras.md).
The facts come from the published files themselves. Case and blanks of names differ between eras, so they are ignored.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from flows.tlc.errors import SchemaMismatch
from flows.tlc.schema import TRIP_COLUMNS, Column
from flows.tlc.sources import Ending
from flows.tlc.trips import TripMonth


@dataclass(frozen=True)
class Era:
    """A period in which a color's files of one format must have the same columns.

    It lasts from the month `first` until the next era of the same color and format.
    """

    color: str
    format: str
    first: str
    columns: str
    coded: str = ""  # columns published as texts that this project converts to codes (`schema.CODINGS`)
    empty: str = ""  # columns that never have a value
    unnamed: int = 0  # how many more fields than the header a row may have

    @property
    def name(self) -> str:
        """Return the era's name in manifests, logs and errors."""
        return f"{self.color} {self.format} since {self.first}"


_YELLOW_2009 = (
    "vendor_name Trip_Pickup_DateTime Trip_Dropoff_DateTime Passenger_Count Trip_Distance Start_Lon Start_Lat Rate_Code"
    " store_and_forward End_Lon End_Lat Payment_Type Fare_Amt surcharge mta_tax Tip_Amt Tolls_Amt Total_Amt"
)
_YELLOW_2010 = (
    "vendor_id pickup_datetime dropoff_datetime passenger_count trip_distance pickup_longitude pickup_latitude rate_code"
    " store_and_fwd_flag dropoff_longitude dropoff_latitude payment_type fare_amount surcharge mta_tax tip_amount"
    " tolls_amount total_amount"
)
_POINTS = "pickup_longitude pickup_latitude dropoff_longitude dropoff_latitude"
_ZONES = "PULocationID DOLocationID"
_YELLOW_2016 = (
    f"VendorID tpep_pickup_datetime tpep_dropoff_datetime passenger_count trip_distance RatecodeID store_and_fwd_flag {_ZONES}"
    " payment_type fare_amount extra mta_tax tip_amount tolls_amount improvement_surcharge total_amount"
)
_YELLOW_2015 = _YELLOW_2016.replace(_ZONES, _POINTS)
_YELLOW = f"{_YELLOW_2016} congestion_surcharge"
_GREEN_2016 = (
    f"VendorID lpep_pickup_datetime lpep_dropoff_datetime store_and_fwd_flag RatecodeID {_ZONES} passenger_count"
    " trip_distance fare_amount extra mta_tax tip_amount tolls_amount ehail_fee improvement_surcharge total_amount"
    " payment_type trip_type"
)
_GREEN_2015 = _GREEN_2016.replace(_ZONES, _POINTS)
_GREEN_2013 = _GREEN_2015.replace(" improvement_surcharge", "")
_GREEN = f"{_GREEN_2016} congestion_surcharge"
_FHV_2015 = "Dispatching_base_num Pickup_date locationID"
_FHV_2017 = "Dispatching_base_num Pickup_DateTime DropOff_datetime PUlocationID DOlocationID"
_FHV_2018 = "Pickup_DateTime DropOff_datetime PUlocationID DOlocationID SR_Flag Dispatching_base_number"
_FHV = "dispatching_base_num pickup_datetime dropoff_datetime PULocationID DOLocationID SR_Flag"
_FHVHV = (
    "hvfhs_license_num dispatching_base_num originating_base_num request_datetime on_scene_datetime pickup_datetime"
    " dropoff_datetime PULocationID DOLocationID trip_miles trip_time base_passenger_fare tolls bcf sales_tax"
    " congestion_surcharge airport_fee tips driver_pay shared_request_flag shared_match_flag access_a_ride_flag"
    " wav_request_flag wav_match_flag"
)
_TEXTS = "VendorID payment_type store_and_fwd_flag"

# From the headers of the legacy CSVs and the footers of the Parquet files themselves. TLC made all Parquet files again in
# 2022; from 2011 on they have the columns of 2022. request_source (2026-06) comes from a second-hand record.
ERAS = (
    Era("yellow", "csv", "2009-01", _YELLOW_2009, coded=_TEXTS),
    Era("yellow", "csv", "2010-01", _YELLOW_2010, coded=_TEXTS),
    Era("yellow", "csv", "2015-01", _YELLOW_2015),
    Era("yellow", "csv", "2016-07", _YELLOW_2016, unnamed=2),
    Era("yellow", "csv", "2017-01", _YELLOW_2016),
    Era("yellow", "csv", "2019-01", _YELLOW),
    Era("yellow", "parquet", "2009-01", _YELLOW_2009, coded=_TEXTS),
    Era("yellow", "parquet", "2010-01", _YELLOW_2010, coded=_TEXTS),
    Era("yellow", "parquet", "2011-01", f"{_YELLOW} airport_fee"),
    Era("yellow", "parquet", "2025-01", f"{_YELLOW} airport_fee cbd_congestion_fee"),
    Era("yellow", "parquet", "2026-06", f"{_YELLOW} airport_fee cbd_congestion_fee request_source"),
    Era("green", "csv", "2013-08", _GREEN_2013, unnamed=2),
    Era("green", "csv", "2015-01", _GREEN_2015, unnamed=2),
    Era("green", "csv", "2015-07", _GREEN_2015),
    Era("green", "csv", "2016-07", _GREEN_2016, unnamed=2),
    Era("green", "csv", "2017-01", _GREEN_2016),
    Era("green", "csv", "2019-01", _GREEN),
    Era("green", "parquet", "2014-01", _GREEN),
    Era("green", "parquet", "2025-01", f"{_GREEN} cbd_congestion_fee"),
    Era("green", "parquet", "2026-06", f"{_GREEN} cbd_congestion_fee request_source"),
    Era("fhv", "csv", "2015-01", _FHV_2015),
    Era("fhv", "csv", "2017-01", _FHV_2017),
    Era("fhv", "csv", "2017-07", f"{_FHV_2017} SR_Flag"),
    Era("fhv", "csv", "2018-01", _FHV_2018, empty="Dispatching_base_num"),
    Era("fhv", "csv", "2019-01", _FHV),
    Era("fhv", "parquet", "2015-01", f"{_FHV} Affiliated_base_number"),
    Era("fhvhv", "csv", "2019-02", f"hvfhs_license_num {_FHV}"),
    Era("fhvhv", "parquet", "2019-02", _FHVHV),
    Era("fhvhv", "parquet", "2025-01", f"{_FHVHV} cbd_congestion_fee"),
)


@dataclass(frozen=True)
class Index:
    """A column of row numbers that a tool added to a file. It has no trip data."""

    name: str  # as `plain` returns it
    made_by: str
    at_ends: bool = True  # it counts as an index only before or after all other columns
    counts: bool = False  # its values must count the rows


# TLC's own Parquet of 2010-02 and 2010-03 has the first. Source of the names: https://pandas.pydata.org/docs/user_guide/io.html
INDEXES = (
    Index("__index_level_0__", "pandas: DataFrame.to_parquet", at_ends=False),
    Index("index", "pandas: DataFrame.reset_index"),
    Index("unnamed: 0", "pandas: read_csv of a file whose first column has no name"),
    Index("unnamed: 0.1", "pandas: read_csv of a file that was read and written in this way twice"),
    Index("level_0", "pandas: DataFrame.reset_index, twice"),
    Index("...1", "R: readr's read_csv of a file whose first column has no name"),
    Index("", "pandas: DataFrame.to_csv; R: write.csv", counts=True),
)
_LAST_CSV = "2021-07"  # of DataTalksClub's mirror; TLC changed to Parquet in May 2022

# Names in older files, with today's names. All other names are today's, except for case and surrounding blanks.
ALIASES: dict[str, dict[str, str]] = {
    "yellow": {
        "vendor_name": "VendorID",
        "vendor_id": "VendorID",
        "Trip_Pickup_DateTime": "tpep_pickup_datetime",
        "pickup_datetime": "tpep_pickup_datetime",
        "Trip_Dropoff_DateTime": "tpep_dropoff_datetime",
        "dropoff_datetime": "tpep_dropoff_datetime",
        "Start_Lon": "pickup_longitude",
        "Start_Lat": "pickup_latitude",
        "End_Lon": "dropoff_longitude",
        "End_Lat": "dropoff_latitude",
        "Rate_Code": "RatecodeID",
        "store_and_forward": "store_and_fwd_flag",
        "Fare_Amt": "fare_amount",
        "surcharge": "extra",
        "Tip_Amt": "tip_amount",
        "Tolls_Amt": "tolls_amount",
        "Total_Amt": "total_amount",
    },
    "green": {},
    "fhv": {
        "Dispatching_base_number": "dispatching_base_num",
        "Pickup_date": "pickup_datetime",
        "locationID": "PUlocationID",
    },
    "fhvhv": {},
}


def era_of(trip_month: TripMonth, ending: Ending) -> Era:
    """Return the era of a month's file; raise `SchemaMismatch` if there is none."""
    file_format = "parquet" if ending == ".parquet" else "csv"
    first = f"{trip_month.year}-{trip_month.month:02d}"
    known = [e for e in ERAS if (e.color, e.format) == (trip_month.color, file_format)]
    begun = [e for e in known if e.first <= first]
    if not begun:
        since = f"the known eras begin with {known[0].first}" if known else "no era is known"
        raise SchemaMismatch(
            f"{trip_month}: the columns of TLC's {file_format} files of that month are unknown ({since});"
            " add a row to flows/tlc/eras.py, or take the month from another source."
        )
    return max(begun, key=lambda e: e.first)


def plain(name: str) -> str:
    """Return a column's name for comparison: case-folded, without surrounding blanks."""
    return name.strip().casefold()


def meanings_of(color: str) -> Mapping[str, Column]:
    """Return every name that a column of the color's files has had, with the canonical column it means."""
    return _meanings_of(color, TRIP_COLUMNS[color])


@cache
def _meanings_of(color: str, columns: tuple[Column, ...]) -> Mapping[str, Column]:
    known = {plain(column.name): column for column in columns}
    return known | {plain(old): known[plain(now)] for old, now in ALIASES.get(color, {}).items()}


def meant_by(color: str, name: str) -> Column | None:
    """Return the canonical column that a name means in files of the color, or None."""
    return meanings_of(color).get(plain(name))


def indexes_of(names: Sequence[str]) -> dict[str, Index]:
    """Return the columns that a tool added to number the rows. A column without a name counts only as the first column."""
    known = {index.name: index for index in INDEXES}
    leading = list(takewhile(lambda name: plain(name) in known, names))  # saving a file again may add one more
    return {
        name: index
        for place, name in enumerate(names)
        if (index := known.get(plain(name)))
        and (place < len(leading) or place == len(names) - 1 or not index.at_ends)
        and (name.strip() or place == 0)
    }


def meant_in(era: Era, names: Sequence[str]) -> dict[str, Column | None]:
    """Return the canonical column of each of a file's columns; None if it is unknown.

    Empty columns of the era and row-number columns are left out.
    """
    meanings = meanings_of(era.color)
    empty, indexes = {plain(name) for name in era.empty.split()}, indexes_of(names)
    return {name: meanings.get(plain(name)) for name in names if plain(name) not in empty and name not in indexes}


def lacking_in(era: Era, names: Sequence[str]) -> list[Column]:
    """Return the columns of an era that a file with the columns `names` does not have."""
    meanings, found = meanings_of(era.color), meant_in(era, names).values()
    return [column for column in map(meanings.get, map(plain, era.columns.split())) if column and column not in found]


def era_like(trip_month: TripMonth, ending: Ending, names: Sequence[str]) -> Era:
    """Return the era of the file's own format. If the file lacks columns of it, return the era of the other format.

    A CSV may be TLC's Parquet file saved as CSV. A Parquet file may be TLC's CSV, for months that had one.
    """
    formats: list[Ending] = [ending]
    if ending != ".parquet":
        formats.append(".parquet")
    elif f"{trip_month.file_month:%Y-%m}" <= _LAST_CSV:
        formats.append(".csv")
    for one in formats:
        with suppress(SchemaMismatch):  # some months have no era in this format
            if not lacking_in(era := era_of(trip_month, one), names):
                return era
    return era_of(trip_month, ending)


def since(era: Era, column: Column) -> str:
    """Return the first month of the last unbroken period, up to `era`, in which files had `column`.

    Return "" if the era does not have it.
    """
    meanings = meanings_of(era.color)
    first = ""
    for one in ERAS:
        if (one.color, one.format) == (era.color, era.format) and one.first <= era.first:
            has = column in (meanings[plain(name)] for name in one.columns.split())
            first = (first or one.first) if has else ""
    return first
