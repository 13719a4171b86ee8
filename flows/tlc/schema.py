"""The canonical schema of every color: the columns of a trip in every store, whatever its file looked like.

Names, order and meanings are those of TLC's newest files:
https://www.nyc.gov/site/tlc/about/tlc-trip-record-data.page (data dictionaries).
"""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

# Increase it whenever a column is added or changes type. Manifests record it, so that months of older schemas can be found.
SCHEMA_VERSION = 2

Kind = Literal["integer", "number", "datetime", "text", "date", "instant"]
# Every number has a unit. An integer with the unit "" is a code, a count or a zone.
Unit = Literal["", "US$", "miles", "seconds", "degrees"]


@dataclass(frozen=True)
class KindOf:
    """The type of one kind of value in each system."""

    arrow: pa.DataType
    bigquery: str
    postgres: str


# Times are New York wall-clock: no zone in any store. Whole numbers are integers with null; money is double.
KINDS: dict[Kind, KindOf] = {
    "integer": KindOf(pa.int64(), "INT64", "bigint"),
    "number": KindOf(pa.float64(), "FLOAT64", "double precision"),
    "datetime": KindOf(pa.timestamp("us"), "DATETIME", "timestamp"),
    "text": KindOf(pa.string(), "STRING", "text"),
    "date": KindOf(pa.date32(), "DATE", "date"),
    # When this project did something; not a trip's time.
    "instant": KindOf(pa.timestamp("us", "UTC"), "TIMESTAMP", "timestamptz"),
}


@dataclass(frozen=True)
class Column:
    """One column of a trip."""

    name: str
    kind: Kind
    meaning: str
    unit: Unit = ""

    @property
    def described(self) -> str:
        """Return the unit and the meaning, as BigQuery shows them."""
        return f"{self.unit}, {self.meaning}" if self.unit else self.meaning

    @property
    def postgres_name(self) -> str:
        """Return the name in lower case, so that `SELECT VendorID` needs no quotes."""
        return self.name.lower()


Row = tuple[str, Kind, str] | tuple[str, Kind, str, Unit]


def _columns(*rows: Row) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


# TLC has no trip id, and identical trips do occur. These two columns are the key in every store.
KEY = _columns(
    ("file_month", "date", "first day of the month in the name of the file that published this trip"),
    ("row_number", "integer", "position of the trip in that file, from 1"),
)

_CBD: Row = ("cbd_congestion_fee", "number", "MTA congestion relief zone, since 2025-01", "US$")
# Yellow and green files share most columns.
_TAXI = _columns(
    ("VendorID", "integer", "1 Creative Mobile Technologies, 2 Curb (VeriFone), 6 Myle, 7 Helix"),
    ("tpep_pickup_datetime", "datetime", "meter engaged"),
    ("tpep_dropoff_datetime", "datetime", "meter disengaged"),
    ("lpep_pickup_datetime", "datetime", "meter engaged"),
    ("lpep_dropoff_datetime", "datetime", "meter disengaged"),
    ("passenger_count", "integer", "as entered by the driver"),
    ("trip_distance", "number", "by the meter", "miles"),
    (
        "RatecodeID",
        "integer",
        "1 standard, 2 JFK, 3 Newark, 4 Nassau or Westchester, 5 negotiated, 6 group, 99 unknown",
    ),
    ("store_and_fwd_flag", "text", "Y: kept in the vehicle before it was sent"),
    ("PULocationID", "integer", "taxi zone of the pickup"),
    ("DOLocationID", "integer", "taxi zone of the dropoff"),
    ("payment_type", "integer", "0 flex fare, 1 credit card, 2 cash, 3 no charge, 4 dispute, 5 unknown, 6 voided"),
    ("fare_amount", "number", "time and distance", "US$"),
    ("extra", "number", "rush hour and overnight", "US$"),
    ("mta_tax", "number", "tax by the metered rate in use", "US$"),
    ("tip_amount", "number", "credit card tips only", "US$"),
    ("tolls_amount", "number", "all tolls of the trip", "US$"),
    ("ehail_fee", "number", "hailed by an app; hardly ever filled", "US$"),
    ("improvement_surcharge", "number", "at the flag drop, since 2015", "US$"),
    ("total_amount", "number", "without cash tips", "US$"),
    ("trip_type", "integer", "1 street hail, 2 dispatch"),
    ("congestion_surcharge", "number", "New York State, since 2019", "US$"),
    ("Airport_fee", "number", "pickups at LaGuardia and JFK", "US$"),
    _CBD,
    ("request_source", "text", "how the trip was requested, since 2026-06"),
    # Columns that only older files have; TLC replaced points by zones in July 2016.
    ("pickup_longitude", "number", "WGS 84, until 2016-06; 0 where unknown", "degrees"),
    ("pickup_latitude", "number", "WGS 84, until 2016-06; 0 where unknown", "degrees"),
    ("dropoff_longitude", "number", "WGS 84, until 2016-06; 0 where unknown", "degrees"),
    ("dropoff_latitude", "number", "WGS 84, until 2016-06; 0 where unknown", "degrees"),
    ("vendor_text", "text", "the vendor as published, where VendorID has no code for it, until 2014"),
    ("payment_text", "text", "the payment as published, where payment_type has no code for it, until 2014"),
)


def _taxi(names: str) -> tuple[Column, ...]:
    known = {column.name: column for column in _TAXI}
    return tuple(known[name] for name in names.split())


TRIP_COLUMNS: dict[str, tuple[Column, ...]] = {
    "yellow": _taxi(
        "VendorID tpep_pickup_datetime tpep_dropoff_datetime passenger_count trip_distance RatecodeID store_and_fwd_flag"
        " PULocationID DOLocationID payment_type fare_amount extra mta_tax tip_amount tolls_amount improvement_surcharge"
        " total_amount congestion_surcharge Airport_fee cbd_congestion_fee request_source pickup_longitude pickup_latitude"
        " dropoff_longitude dropoff_latitude vendor_text payment_text"
    ),
    "green": _taxi(
        "VendorID lpep_pickup_datetime lpep_dropoff_datetime store_and_fwd_flag RatecodeID PULocationID DOLocationID"
        " passenger_count trip_distance fare_amount extra mta_tax tip_amount tolls_amount ehail_fee improvement_surcharge"
        " total_amount payment_type trip_type congestion_surcharge cbd_congestion_fee request_source pickup_longitude"
        " pickup_latitude dropoff_longitude dropoff_latitude"
    ),
    "fhv": _columns(
        ("dispatching_base_num", "text", "TLC licence of the base that dispatched"),
        ("pickup_datetime", "datetime", "trip begun"),
        ("dropOff_datetime", "datetime", "trip ended"),
        ("PUlocationID", "integer", "taxi zone of the pickup"),
        ("DOlocationID", "integer", "taxi zone of the dropoff"),
        ("SR_Flag", "integer", "1: part of a shared ride"),
        ("Affiliated_base_number", "text", "TLC licence of the base the vehicle belongs to"),
    ),
    "fhvhv": _columns(
        ("hvfhs_license_num", "text", "HV0002 Juno, HV0003 Uber, HV0004 Via, HV0005 Lyft"),
        ("dispatching_base_num", "text", "TLC licence of the base that dispatched"),
        ("originating_base_num", "text", "TLC licence of the base that got the request"),
        ("request_datetime", "datetime", "asked for"),
        ("on_scene_datetime", "datetime", "driver arrived, accessible vehicles"),
        ("pickup_datetime", "datetime", "trip begun"),
        ("dropoff_datetime", "datetime", "trip ended"),
        ("PULocationID", "integer", "taxi zone of the pickup"),
        ("DOLocationID", "integer", "taxi zone of the dropoff"),
        ("trip_miles", "number", "with the passenger", "miles"),
        ("trip_time", "integer", "with the passenger", "seconds"),
        ("base_passenger_fare", "number", "before tolls, tips, taxes and fees", "US$"),
        ("tolls", "number", "all tolls of the trip", "US$"),
        ("bcf", "number", "Black Car Fund", "US$"),
        ("sales_tax", "number", "New York State sales tax", "US$"),
        ("congestion_surcharge", "number", "New York State", "US$"),
        ("airport_fee", "number", "LaGuardia, JFK and Newark", "US$"),
        ("tips", "number", "from the passenger", "US$"),
        ("driver_pay", "number", "without tolls and tips", "US$"),
        ("shared_request_flag", "text", "Y: passenger agreed to share"),
        ("shared_match_flag", "text", "Y: passenger did share"),
        ("access_a_ride_flag", "text", "Y: on behalf of the MTA; a blank for Uber"),
        ("wav_request_flag", "text", "Y: wheelchair-accessible vehicle asked for"),
        ("wav_match_flag", "text", "Y: wheelchair-accessible vehicle came"),
        _CBD,
        ("SR_Flag", "integer", "1: part of a shared ride; the CSVs of 2019 to 2021 alone have it"),
    ),
}


@dataclass(frozen=True)
class Coding:
    """Maps the texts of older files to TLC's codes of today.

    A text without a code is kept in the column `original`. If `original` is "", the text stays in its own column.
    """

    codes: dict[str, int] | dict[str, str]
    original: str = ""


# Yellow files up to 2014 have texts such as VTS and CASH where later files have a number. Case and blanks are ignored.
# Codes: https://www.nyc.gov/assets/tlc/downloads/pdf/data_dictionary_trip_records_yellow.pdf; spellings: the files themselves.
CODINGS: dict[str, Coding] = {
    "VendorID": Coding({"cmt": 1, "vts": 2}, "vendor_text"),
    "payment_type": Coding(
        {
            **dict.fromkeys(("credit", "crd", "cre"), 1),
            **dict.fromkeys(("cash", "csh", "cas"), 2),
            **dict.fromkeys(("no charge", "noc", "no"), 3),
            **dict.fromkeys(("dispute", "dis"), 4),
            **dict.fromkeys(("unknown", "unk"), 5),
        },
        "payment_text",
    ),
    "store_and_fwd_flag": Coding({"0": "N", "0.0": "N", "1": "Y", "1.0": "Y"}),
}

# How pandas, R, databases and spreadsheets spell a missing value. They mean missing only where a text is not possible.
# https://pandas.pydata.org/docs/reference/api/pandas.read_csv.html (na_values)
MISSING = (
    *("", "NA", "N/A", "#N/A", "n/a", "<NA>", "NULL", "Null", "null", "(null)", r"\N", "nan", "NaN", "NAN", "NaT"),
    "None",
)


def columns(color: str) -> tuple[Column, ...]:
    """Return every column of a stored trip of this color, in order: TLC's columns, then the key."""
    return TRIP_COLUMNS[color] + KEY


def arrow_schema(color: str) -> pa.Schema:
    """Return the canonical schema in Arrow's types, as Parquet files have it."""
    return pa.schema([(column.name, KINDS[column.kind].arrow) for column in columns(color)])


QUARANTINE_COLUMNS = _columns(
    ("row_number", "integer", "position of the row in its file, from 1"),
    ("reason", "text", "why it did not fit: the column, and what its value is not"),
    ("original", "text", "the row as published: a line of CSV, or the values as JSON"),
)
QUARANTINE_SCHEMA = pa.schema([pa.field(c.name, KINDS[c.kind].arrow, nullable=False) for c in QUARANTINE_COLUMNS])
