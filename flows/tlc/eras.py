"""What TLC's files have looked like, as rows: which columns a file of a month must have, and what each is called now.

TLC adds a column: add it to `schema.TRIP_COLUMNS`, and an era here that begins with its first month (docs/eras.md).
Facts read off the published files themselves; names differ in case and blanks between eras, so case and blanks do not count.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile

from flows.tlc.errors import SchemaMismatch
from flows.tlc.schema import TRIP_COLUMNS, Column
from flows.tlc.sources import Ending
from flows.tlc.trips import TripMonth


@dataclass(frozen=True)
class Era:
    """The months from `first` on, until the next era of the same color and format, whose files must have `columns`.

    `coded` columns are published as texts that stand for codes (`schema.CODINGS`); `empty` ones hold nothing, ever.
    `unnamed` is how many more fields than names its rows may have.
    """

    color: str
    format: str
    first: str
    columns: str
    coded: str = ""
    empty: str = ""
    unnamed: int = 0

    @property
    def name(self) -> str:
        """How manifests, logs and errors call it."""
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

# Read off the headers of the legacy CSVs and the footers of the Parquet files themselves. The Parquet files were all made
# again in 2022, with the columns of that year from 2011 on; request_source (2026-06) rests on a second-hand record.
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
    """A column of row numbers that a tool adds to a file, as `_plain` has its name: no trip data.

    It is one in any place, or only before or behind all other columns (`at_ends`). `counts`: its values must count the rows.
    """

    name: str
    made_by: str
    at_ends: bool = True
    counts: bool = False


# TLC's own Parquet of 2010-02 and 2010-03 has the first. Of the names: https://pandas.pydata.org/docs/user_guide/io.html
INDEXES = (
    Index("__index_level_0__", "pandas: DataFrame.to_parquet", at_ends=False),
    Index("index", "pandas: DataFrame.reset_index"),
    Index("unnamed: 0", "pandas: read_csv of a file with the last of these"),
    Index("unnamed: 0.1", "pandas: read_csv of a file that was read and written so twice"),
    Index("level_0", "pandas: DataFrame.reset_index, twice"),
    Index("...1", "R: readr's read_csv of a file with the next"),
    Index("", "pandas: DataFrame.to_csv; R: write.csv", counts=True),
)
_LAST_CSV = "2021-07"  # of DataTalksClub's mirror; TLC went over to Parquet in May 2022

# What older files call a column of today's; every other name is today's, but for case and blanks around it.
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


def plain(name: str) -> str:
    """Return a column's name as it is compared: folded, without blanks around it."""
    return name.strip().casefold()


def meanings_of(color: str) -> dict[str, Column]:
    """Every name that any file of the color has used, and the canonical column it means."""
    known = {plain(column.name): column for column in TRIP_COLUMNS[color]}
    return known | {plain(old): known[plain(now)] for old, now in ALIASES[color].items()}


def names_of(color: str) -> frozenset[str]:
    """Return every name that a column of the color's files has had, folded and without blanks around it."""
    return frozenset(meanings_of(color))


def meant_by(color: str, name: str) -> Column | None:
    """The canonical column that files of the color mean by a name, if any."""
    return meanings_of(color).get(plain(name))


def indexes_of(names: Sequence[str]) -> dict[str, Index]:
    """The columns that a tool added to count the rows. One without a name is one as the first column only."""
    known = {index.name: index for index in INDEXES}
    leading = list(takewhile(lambda name: plain(name) in known, names))  # each time that a file is saved may add one
    return {
        name: index
        for place, name in enumerate(names)
        if (index := known.get(plain(name)))
        and (place < len(leading) or place == len(names) - 1 or not index.at_ends)
        and (name.strip() or place == 0)
    }


def meant_in(era: Era, names: Sequence[str]) -> dict[str, Column | None]:
    """What a file of an era means by the names of its columns, those beside trips left out; None where nobody knows."""
    meanings = meanings_of(era.color)
    empty, indexes = {plain(name) for name in era.empty.split()}, indexes_of(names)
    return {name: meanings.get(plain(name)) for name in names if plain(name) not in empty and name not in indexes}


def lacking_in(era: Era, names: Sequence[str]) -> list[Column]:
    """Columns that an era has and a file with columns `names` has not."""
    meanings, found = meanings_of(era.color), meant_in(era, names).values()
    return [column for column in map(meanings.get, map(plain, era.columns.split())) if column and column not in found]


def era_like(trip_month: TripMonth, ending: Ending, names: Sequence[str]) -> Era:
    """The era of the file: its format's own, or, if that has other columns, the other format's.

    For a CSV may be TLC's Parquet saved as one, and a Parquet TLC's CSV, of the months that had one.
    """
    formats: list[Ending] = [ending]
    if ending != ".parquet":
        formats.append(".parquet")
    elif f"{trip_month.file_month:%Y-%m}" <= _LAST_CSV:
        formats.append(".csv")
    for one in formats:
        with suppress(SchemaMismatch):  # of some months there is none
            if not lacking_in(era := era_of(trip_month, one), names):
                return era
    return era_of(trip_month, ending)


def since(era: Era, column: Column) -> str:
    """The month from which on files of this color and format have had `column`, without a gap up to `era`; "" if it has not."""
    meanings = meanings_of(era.color)
    first = ""
    for one in ERAS:
        if (one.color, one.format) == (era.color, era.format) and one.first <= era.first:
            has = column in (meanings[plain(name)] for name in one.columns.split())
            first = (first or one.first) if has else ""
    return first
