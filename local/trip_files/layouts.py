"""The layout of every file that TLC published, as rows of tables: names, order, types, line ends, compression by month.

These tables are independent of the product's table of eras, because tests compare the two. A row applies from its month until the
next row for the same subject, so the newest era has no end.

Sources: the first 1,024 bytes of legacy CSVs (header bytes), footers of complete green months (types, compression, metadata), and
a list of 487 official files with their columns. Rows marked † come from a secondary source. Rows marked ‡ are for a type that
changes from month to month, where no source names the months: here odd months have one type and even months the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

Color = Literal["yellow", "green", "fhv", "fhvhv"]  # a test compares this with the product's
COLORS: tuple[Color, ...] = get_args(Color)
FIRST_FILE = {
    ("yellow", "csv"): "2009-01",
    ("green", "csv"): "2013-08",
    ("fhv", "csv"): "2015-01",
    ("fhvhv", "csv"): "2019-02",
    ("yellow", "parquet"): "2009-01",
    ("green", "parquet"): "2014-01",
    ("fhv", "parquet"): "2015-01",
    ("fhvhv", "parquet"): "2019-02",
}

# Each field of a trip, with every column name that TLC has used for it (compared without case and surrounding blanks).
NAMES_OF_FIELD = {
    "vendor": "VendorID vendor_id vendor_name",
    "pickup": "tpep_pickup_datetime lpep_pickup_datetime pickup_datetime Trip_Pickup_DateTime Pickup_date",
    "dropoff": "tpep_dropoff_datetime lpep_dropoff_datetime dropoff_datetime Trip_Dropoff_DateTime",
    "passengers": "passenger_count",
    "distance": "trip_distance trip_miles",
    "rate_code": "RatecodeID rate_code",
    "flag": "store_and_fwd_flag store_and_forward",
    "pickup_zone": "PULocationID locationID",
    "dropoff_zone": "DOLocationID",
    "pickup_lon": "pickup_longitude Start_Lon",
    "pickup_lat": "pickup_latitude Start_Lat",
    "dropoff_lon": "dropoff_longitude End_Lon",
    "dropoff_lat": "dropoff_latitude End_Lat",
    "payment": "payment_type",
    "trip_type": "trip_type",
    "fare": "fare_amount Fare_Amt base_passenger_fare",
    "extra": "extra surcharge",
    "mta_tax": "mta_tax",
    "tip": "tip_amount Tip_Amt tips",
    "tolls": "tolls_amount Tolls_Amt tolls",
    "ehail": "ehail_fee",
    "improvement": "improvement_surcharge",
    "congestion": "congestion_surcharge",
    "airport": "airport_fee",
    "cbd": "cbd_congestion_fee",
    "total": "total_amount Total_Amt",
    "request_source": "request_source",
    "base": "dispatching_base_num Dispatching_base_number",
    "affiliated_base": "Affiliated_base_number",
    "originating_base": "originating_base_num",
    "shared": "SR_Flag",
    "license": "hvfhs_license_num",
    "request": "request_datetime",
    "on_scene": "on_scene_datetime",
    "seconds": "trip_time",
    "black_car_fund": "bcf",
    "sales_tax": "sales_tax",
    "driver_pay": "driver_pay",
    "shared_request": "shared_request_flag",
    "shared_match": "shared_match_flag",
    "access_a_ride": "access_a_ride_flag",
    "wheelchair_request": "wav_request_flag",
    "wheelchair_match": "wav_match_flag",
    "row": "__index_level_0__",
}
_FIELD_OF_NAME = {name.lower(): field for field, names in NAMES_OF_FIELD.items() for name in names.split()}

_YELLOW_2010 = (
    "vendor_id,pickup_datetime,dropoff_datetime,passenger_count,trip_distance,pickup_longitude,pickup_latitude,"
    "rate_code,store_and_fwd_flag,dropoff_longitude,dropoff_latitude,payment_type,fare_amount,surcharge,mta_tax,"
    "tip_amount,tolls_amount,total_amount"
)
_YELLOW_2009 = (
    "vendor_name,Trip_Pickup_DateTime,Trip_Dropoff_DateTime,Passenger_Count,Trip_Distance,Start_Lon,Start_Lat,"
    "Rate_Code,store_and_forward,End_Lon,End_Lat,Payment_Type,Fare_Amt,surcharge,mta_tax,Tip_Amt,Tolls_Amt,Total_Amt"
)
_YELLOW_2015 = (
    "VendorID,tpep_pickup_datetime,tpep_dropoff_datetime,passenger_count,trip_distance,pickup_longitude,"
    "pickup_latitude,RateCodeID,store_and_fwd_flag,dropoff_longitude,dropoff_latitude,payment_type,fare_amount,extra,"
    "mta_tax,tip_amount,tolls_amount,improvement_surcharge,total_amount"
)
_YELLOW_2016 = (
    "VendorID,tpep_pickup_datetime,tpep_dropoff_datetime,passenger_count,trip_distance,RatecodeID,store_and_fwd_flag,"
    "PULocationID,DOLocationID,payment_type,fare_amount,extra,mta_tax,tip_amount,tolls_amount,improvement_surcharge,"
    "total_amount"
)
_GREEN_2015 = (
    "VendorID,lpep_pickup_datetime,Lpep_dropoff_datetime,Store_and_fwd_flag,RateCodeID,Pickup_longitude,"
    "Pickup_latitude,Dropoff_longitude,Dropoff_latitude,Passenger_count,Trip_distance,Fare_amount,Extra,MTA_tax,"
    "Tip_amount,Tolls_amount,Ehail_fee,improvement_surcharge,Total_amount,Payment_type,Trip_type "
)
_GREEN_2013 = _GREEN_2015.replace("improvement_surcharge,", "")
_GREEN_2016 = (
    "VendorID,lpep_pickup_datetime,lpep_dropoff_datetime,store_and_fwd_flag,RatecodeID,PULocationID,DOLocationID,"
    "passenger_count,trip_distance,fare_amount,extra,mta_tax,tip_amount,tolls_amount,ehail_fee,improvement_surcharge,"
    "total_amount,payment_type,trip_type"
)
_FHV_2017 = "Dispatching_base_num,Pickup_DateTime,DropOff_datetime,PUlocationID,DOlocationID"
_FHV_2018 = (
    "Pickup_DateTime,DropOff_datetime,PUlocationID,DOlocationID,SR_Flag,Dispatching_base_number,Dispatching_base_num"
)
_FHV_2019 = "dispatching_base_num,pickup_datetime,dropoff_datetime,PULocationID,DOLocationID,SR_Flag"


@dataclass(frozen=True)
class CsvLayout:
    """The format of a color's CSV from a month on: header, line end of the header, format of rows."""

    color: str
    since: str
    header: str
    header_end: bytes = b"\r\n"
    """Data lines end in CRLF in every era. The header's end differs, and may include blank lines."""
    empty_tail: int = 0
    """Number of empty fields at the end of every data row that have no name in the header."""
    decimals: Literal["exact", "noisy"] = "exact"
    """noisy: doubles printed with 17 digits (2.6299999999999999); exact: 7.5, and distances as .79."""
    quoting: Literal["none", "all"] = "none"
    never_filled: str = ""
    """A column of the header that is always empty."""

    def columns(self) -> list[tuple[str, str]]:
        """Return (published name, field) of every named column."""
        return [(name, field_of(name)) for name in self.header.split(",")]


CSV_LAYOUTS = (
    CsvLayout("yellow", "2009-01", _YELLOW_2009, b"\n\r\n", decimals="noisy"),
    CsvLayout("yellow", "2010-01", _YELLOW_2010, b"\n\r\n", decimals="noisy"),
    CsvLayout("yellow", "2014-01", _YELLOW_2010.replace(",", ", "), b"\n\r\n", decimals="noisy"),
    CsvLayout("yellow", "2015-01", _YELLOW_2015),
    CsvLayout("yellow", "2015-07", _YELLOW_2015.replace("RateCodeID", "RatecodeID")),
    CsvLayout("yellow", "2016-07", _YELLOW_2016, empty_tail=2),
    CsvLayout("yellow", "2017-01", _YELLOW_2016, b"\n\r\n"),
    CsvLayout("yellow", "2019-01", _YELLOW_2016 + ",congestion_surcharge"),
    CsvLayout("green", "2013-08", _GREEN_2013, b"\n\r\n", empty_tail=2),
    CsvLayout("green", "2014-01", _GREEN_2013, b"\n\n\r\n", empty_tail=2),
    CsvLayout("green", "2015-01", _GREEN_2015, empty_tail=2),
    CsvLayout("green", "2015-07", _GREEN_2015),
    CsvLayout("green", "2016-01", _GREEN_2015, b"\n\r\n"),
    CsvLayout("green", "2016-07", _GREEN_2016, b"\n\r\n", empty_tail=2),
    CsvLayout("green", "2017-01", _GREEN_2016, b"\n\r\n"),
    CsvLayout("green", "2019-01", _GREEN_2016 + ",congestion_surcharge"),
    CsvLayout("fhv", "2015-01", "Dispatching_base_num,Pickup_date,locationID"),
    CsvLayout("fhv", "2017-01", _FHV_2017),
    CsvLayout("fhv", "2017-07", ",".join(f'"{name}"' for name in [*_FHV_2017.split(","), "SR_Flag"]), quoting="all"),
    CsvLayout(
        "fhv",
        "2018-01",
        ",".join(f'"{name}"' for name in _FHV_2018.split(",")),
        quoting="all",
        never_filled='"Dispatching_base_num"',
    ),
    CsvLayout("fhv", "2019-01", _FHV_2019),
    CsvLayout("fhvhv", "2019-02", f"hvfhs_license_num,{_FHV_2019}"),
)

_YELLOW_OFFICIAL = _YELLOW_2016 + ",congestion_surcharge,airport_fee"
_GREEN_OFFICIAL = _GREEN_2016 + ",congestion_surcharge"
_FHVHV_OFFICIAL = (
    "hvfhs_license_num,dispatching_base_num,originating_base_num,request_datetime,on_scene_datetime,pickup_datetime,"
    "dropoff_datetime,PULocationID,DOLocationID,trip_miles,trip_time,base_passenger_fare,tolls,bcf,sales_tax,"
    "congestion_surcharge,airport_fee,tips,driver_pay,shared_request_flag,shared_match_flag,access_a_ride_flag,"
    "wav_request_flag,wav_match_flag"
)
# Rows: color, since, names.
PARQUET_NAMES = (
    ("yellow", "2009-01", _YELLOW_2009),
    ("yellow", "2010-01", _YELLOW_2010),
    ("yellow", "2010-02", _YELLOW_2010 + ",__index_level_0__"),
    ("yellow", "2010-04", _YELLOW_2010),
    ("yellow", "2011-01", _YELLOW_OFFICIAL),
    ("yellow", "2023-02", _YELLOW_OFFICIAL.replace("airport_fee", "Airport_fee")),
    ("yellow", "2025-01", _YELLOW_OFFICIAL.replace("airport_fee", "Airport_fee") + ",cbd_congestion_fee"),
    (  # †
        "yellow",
        "2026-06",
        _YELLOW_OFFICIAL.replace("airport_fee", "Airport_fee") + ",cbd_congestion_fee,request_source",
    ),
    ("green", "2014-01", _GREEN_OFFICIAL),
    ("green", "2025-01", _GREEN_OFFICIAL + ",cbd_congestion_fee"),
    ("green", "2026-06", _GREEN_OFFICIAL + ",cbd_congestion_fee,request_source"),  # †
    (
        "fhv",
        "2015-01",
        "dispatching_base_num,pickup_datetime,dropOff_datetime,PUlocationID,DOlocationID,SR_Flag,Affiliated_base_number",
    ),
    ("fhvhv", "2019-02", _FHVHV_OFFICIAL),
    ("fhvhv", "2025-01", _FHVHV_OFFICIAL + ",cbd_congestion_fee"),  # †
)

# Rows: colors, fields, since, type, months. Of the matching rows, the one with the latest `since` applies, and among those the
# last. A field without a row is a double.
_TEXTS = (
    "flag base affiliated_base originating_base license shared_request shared_match access_a_ride wheelchair_request "
    "wheelchair_match request_source"
)
_ANY = " ".join(COLORS)
PARQUET_TYPES = (
    (
        _ANY,
        "vendor pickup_zone dropoff_zone passengers rate_code payment trip_type seconds row",
        "2009-01",
        "int64",
        "all",
    ),
    (_ANY, "pickup dropoff request on_scene", "2009-01", "timestamp[us]", "all"),
    (_ANY, _TEXTS, "2009-01", "string", "all"),
    (_ANY, _TEXTS, "2023-02", "large_string", "all"),
    (_ANY, "vendor pickup_zone dropoff_zone", "2023-02", "int32", "all"),
    ("yellow", "vendor payment pickup dropoff", "2009-01", "string", "all"),
    ("yellow", "rate_code flag", "2009-01", "double", "all"),
    ("yellow", "pickup dropoff", "2010-01", "timestamp[us]", "all"),
    ("yellow", "rate_code flag", "2010-01", "string", "all"),
    ("yellow", "rate_code", "2010-02", "int64", "all"),
    ("yellow", "rate_code", "2010-04", "string", "all"),
    ("yellow", "vendor payment rate_code", "2011-01", "int64", "all"),
    ("yellow", "passengers rate_code", "2018-07", "double", "all"),
    ("yellow", "congestion", "2011-01", "null", "even"),  # ‡
    ("yellow", "congestion", "2019-01", "double", "all"),
    ("yellow", "airport", "2011-01", "null", "even"),  # ‡
    ("yellow", "airport", "2021-01", "double", "all"),
    ("yellow", "improvement", "2014-08", "null", "all"),
    ("yellow", "improvement", "2014-09", "double", "all"),
    ("yellow", "passengers rate_code", "2023-02", "int64", "all"),
    ("green", "passengers rate_code payment trip_type", "2014-01", "double", "all"),
    ("green", "passengers rate_code payment trip_type", "2023-02", "int64", "all"),
    ("green", "ehail", "2019-09", "null", "all"),  # † as a whole; seen in 2020-04, 2020-08, 2021-01, 2022-01, 2023-01
    ("green", "ehail", "2023-02", "double", "all"),
    ("fhv", "pickup_zone dropoff_zone", "2015-01", "double", "all"),
    ("fhv", "pickup_zone dropoff_zone", "2017-01", "int64", "even"),  # ‡
    ("fhv", "pickup_zone dropoff_zone", "2023-02", "double", "odd"),  # ‡
    ("fhv", "pickup_zone dropoff_zone", "2023-02", "int64", "even"),  # ‡
    ("fhv", "shared", "2019-03", "null", "all"),
    ("fhv", "shared", "2023-02", "double", "all"),
    ("fhvhv", "airport wheelchair_match", "2019-02", "null", "even"),  # ‡
    ("fhvhv", "airport", "2021-01", "double", "all"),
    ("fhvhv", "wheelchair_match", "2021-01", "string", "all"),
)
_ARROW_TYPES: dict[str, pa.DataType] = {
    "int64": pa.int64(),
    "int32": pa.int32(),
    "double": pa.float64(),
    "string": pa.string(),
    "large_string": pa.large_string(),
    "timestamp[us]": pa.timestamp("us"),
    "null": pa.null(),
}
_PANDAS_TYPES = {
    "int64": ("int64", "int64"),
    "double": ("float64", "float64"),
    "string": ("unicode", "object"),
    "timestamp[us]": ("datetime", "datetime64[ns]"),
    "null": ("empty", "object"),
}


@dataclass(frozen=True)
class Writer:
    """The program with which TLC wrote its official files from a month on, by the footer's created_by, and its settings."""

    since: str
    compression: Literal["gzip", "zstd"]
    statistics: Literal["all", "none"]
    format_version: Literal["1.0", "2.6"]
    rows_per_group: int
    """Arrow's default: before 11.0, 64 Mi rows, which makes one row group of every month; since then, 1 Mi rows."""
    pandas: tuple[str, str] | None
    """(pyarrow, pandas) versions in the pandas metadata, or None if the footer has no such metadata."""


WRITERS = (
    Writer("2009-01", "gzip", "all", "1.0", 1 << 26, ("7.0.0", "1.2.4")),
    Writer("2023-01", "gzip", "all", "1.0", 1 << 26, ("8.0.0", "1.2.3")),
    Writer("2023-02", "zstd", "none", "1.0", 1 << 26, None),
    Writer("2023-06", "zstd", "none", "2.6", 1 << 20, None),
    Writer("2024-05", "zstd", "all", "2.6", 1 << 20, None),
)


@dataclass(frozen=True)
class ParquetLayout:
    """The format of a color's official file of one month: columns and writer."""

    writer: Writer
    columns: tuple[tuple[str, str, str], ...]
    """(published name, field, Arrow type as text)."""

    def schema(self) -> pa.Schema:
        """Return the Arrow schema, with pandas metadata if the era's files have it."""
        schema = pa.schema([(name, _ARROW_TYPES[kind]) for name, _, kind in self.columns])
        if self.writer.pandas is None:
            return schema
        return schema.with_metadata({"pandas": json.dumps(self._pandas_metadata(*self.writer.pandas))})

    def _pandas_metadata(self, pyarrow_version: str, pandas_version: str) -> dict[str, object]:
        return {
            "index_columns": [name for name, field, _ in self.columns if field == "row"],
            "column_indexes": [],
            "columns": [
                {
                    "name": None if field == "row" else name,
                    "field_name": name,
                    "pandas_type": _PANDAS_TYPES[kind][0],
                    "numpy_type": _PANDAS_TYPES[kind][1],
                    "metadata": None,
                }
                for name, field, kind in self.columns
            ],
            "creator": {"library": "pyarrow", "version": pyarrow_version},
            "pandas_version": pandas_version,
        }


def field_of(name: str) -> str:
    """Return the field of a published column name. Raise `KeyError` for a name that TLC never used."""
    return _FIELD_OF_NAME[name.strip(' "').lower()]


def csv_layout(color: str, month: str) -> CsvLayout:
    """Return the CSV format of a month such as 2021-01. Raise `ValueError` for a month before TLC's first."""
    _require_published(color, month, "csv")
    return [layout for layout in CSV_LAYOUTS if layout.color == color and layout.since <= month][-1]


def parquet_layout(
    color: str, month: str, null_typed: Literal["as_published", "never"] = "as_published"
) -> ParquetLayout:
    """Return the official format of a month such as 2021-01. With null_typed="never" no column has the type null."""
    _require_published(color, month, "parquet")
    names = [names for row_color, since, names in PARQUET_NAMES if row_color == color and since <= month][-1]
    columns = []
    for name in names.split(","):
        field = field_of(name)
        kinds = _types_of(color, field, month)
        if null_typed == "never":
            kinds = [kind for kind in kinds if kind != "null"]
        columns.append((name, field, kinds[-1]))
    return ParquetLayout([writer for writer in WRITERS if writer.since <= month][-1], tuple(columns))


def _types_of(color: str, field: str, month: str) -> list[str]:
    """Return every type that the field has had up to a month. The last one applies."""
    parity = "even" if int(month[-2:]) % 2 == 0 else "odd"
    fitting = [
        (since, kind)
        for colors, fields, since, kind, months in PARQUET_TYPES
        if color in colors.split() and field in fields.split() and since <= month and months in ("all", parity)
    ]
    return ["double", *(kind for _, kind in sorted(fitting, key=lambda row: row[0]))]


def _require_published(color: str, month: str, file_format: str) -> None:
    first = FIRST_FILE.get((color, file_format))
    if first is None or month < first:
        raise ValueError(f"TLC published no {color} {file_format} for {month}; the first is {first or 'none at all'}")
