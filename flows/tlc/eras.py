"""What TLC's files have looked like, as rows: which columns a file of a month must have, and what each is called now.

TLC adds a column: add it to `schema.TRIP_COLUMNS`, and an era here that begins with its first month (docs/eras.md).
Facts read off the published files themselves; names differ in case and blanks between eras, so case and blanks do not count.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from itertools import takewhile

import pyarrow as pa

from flows.tlc.errors import SchemaMismatch
from flows.tlc.schema import KEY, TRIP_COLUMNS, Column, Kind
from flows.tlc.sources import Ending
from flows.tlc.trips import SchemaRule, TripMonth


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

# Which published Arrow types a kind can come from without a guess; a value that will not convert is quarantined.
# Floats in a column of texts or times are pandas' way to have no value there: `clean` refuses one that has a number.
_TEXT_TYPES = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
_FLOAT_TYPES = ("double", "float", "halffloat")
_NUMBER_TYPES = ("int", "uint", "decimal", *_FLOAT_TYPES, "null", *_TEXT_TYPES)
_CONVERTIBLE: dict[Kind, tuple[str, ...]] = {
    "integer": _NUMBER_TYPES,
    "number": _NUMBER_TYPES,
    "datetime": ("timestamp", "null", *_FLOAT_TYPES, *_TEXT_TYPES),
    "text": ("null", *_FLOAT_TYPES, *_TEXT_TYPES),
}


@dataclass(frozen=True)
class Shape:
    """How one file's columns map to the canonical ones: `published[i]` is read as `canonical[i]`.

    `names` are all its columns in order; those in `empty` must hold nothing in any row, unnamed ones at the end among them;
    those in `new` no schema knows, and they are kept as published; those in `counting` must count the rows, and are left out.
    """

    era: Era
    names: tuple[str, ...]
    published: tuple[str, ...]
    canonical: tuple[Column, ...]
    empty: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    counting: tuple[str, ...] = ()

    def coded(self, column: Column) -> bool:
        """Whether the file says in words what the column says in codes."""
        return column.name in self.era.coded.split()

    def padded(self, fields: int) -> "Shape":
        """The same file with `fields` more at the end of each row, which the header has no names for."""
        unnamed = tuple(f"(field {len(self.names) + i + 1}, which has no name)" for i in range(fields))
        return replace(self, names=self.names + unnamed, empty=self.empty + unnamed)


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


_KEY_NAMES = {column.name for column in KEY}


def _plain(name: str) -> str:
    return name.strip().casefold()


def _meanings(color: str) -> dict[str, Column]:
    """Every name that any file of the color has used, and the canonical column it means."""
    known = {_plain(column.name): column for column in TRIP_COLUMNS[color]}
    return known | {_plain(old): known[_plain(now)] for old, now in ALIASES[color].items()}


def names_of(color: str) -> frozenset[str]:
    """Return every name that a column of the color's files has had, folded and without blanks around it."""
    return frozenset(_meanings(color))


def meant_by(color: str, name: str) -> Column | None:
    """The canonical column that files of the color mean by a name, if any."""
    return _meanings(color).get(_plain(name))


def _indexes(names: Sequence[str]) -> dict[str, Index]:
    """The columns that a tool added to count the rows. One without a name is one as the first column only."""
    known = {index.name: index for index in INDEXES}
    leading = list(takewhile(lambda name: _plain(name) in known, names))  # each time that a file is saved may add one
    return {
        name: index
        for place, name in enumerate(names)
        if (index := known.get(_plain(name)))
        and (place < len(leading) or place == len(names) - 1 or not index.at_ends)
        and (name.strip() or place == 0)
    }


def _meant(era: Era, names: Sequence[str]) -> dict[str, Column | None]:
    """What a file of an era means by the names of its columns, those beside trips left out; None where nobody knows."""
    meanings = _meanings(era.color)
    empty, indexes = {_plain(name) for name in era.empty.split()}, _indexes(names)
    return {name: meanings.get(_plain(name)) for name in names if _plain(name) not in empty and name not in indexes}


def _lacking(era: Era, names: Sequence[str]) -> list[Column]:
    """Columns that an era has and a file with columns `names` has not."""
    meanings, found = _meanings(era.color), _meant(era, names).values()
    return [column for column in map(meanings.get, map(_plain, era.columns.split())) if column and column not in found]


def _era_like(trip_month: TripMonth, ending: Ending, names: Sequence[str]) -> Era:
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
            if not _lacking(era := era_of(trip_month, one), names):
                return era
    return era_of(trip_month, ending)


def since(era: Era, column: Column) -> str:
    """The month from which on files of this color and format have had `column`, without a gap up to `era`; "" if it has not."""
    meanings = _meanings(era.color)
    first = ""
    for one in ERAS:
        if (one.color, one.format) == (era.color, era.format) and one.first <= era.first:
            has = column in (meanings[_plain(name)] for name in one.columns.split())
            first = (first or one.first) if has else ""
    return first


@dataclass(frozen=True)
class Difference:
    """One line of the table that says how a file's columns are not those of its era."""

    column: str
    published: str
    expected: str
    since_when: str
    what_to_do: str


_MOST_COLUMNS = 200  # of a file; TLC's have 25 at the most
_MOST_TOLD = 20  # differences in a message
_LONGEST_CELL = 60  # characters of a name or a type in it


def _cell(text: str) -> str:
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}…"


def _as_text(differences: Sequence[Difference]) -> str:
    """The table, in columns of letters of one width, as logs and terminals show it."""
    heads = tuple(field.name.replace("_", " ") for field in fields(Difference))
    rows = [heads, *map(astuple, differences[:_MOST_TOLD])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    more = [f"and {len(differences) - _MOST_TOLD} more"] if len(differences) > _MOST_TOLD else []
    return "\n".join([" | ".join(map(str.ljust, row, widths)).rstrip() for row in rows] + more)


_FOR_GOOD = "if TLC changed it for good: docs/eras.md"
_ABSENT = f"get TLC's own file; {_FOR_GOOD}"
_TWICE = f"leave one of them out; {_FOR_GOOD}"
_KEYS_NAME = f"give the column another name, or get TLC's own file; {_FOR_GOOD}"
_TYPE = f"save the column as {{}}, or get TLC's own file; {_FOR_GOOD}"
_NAMELESS = "get TLC's own file; one saved by pandas: save it with index=False"
_ADD = {
    "strict": "add it (docs/eras.md), or load the lake alone, with schema=accept_new_columns",
    "accept_new_columns": "nothing: it would be kept as published",
}
_RENAMED = "\nIf an absent column is there by a new name: add that name to ALIASES in flows/tlc/eras.py."
_TLC_TYPES: dict[Kind, str] = {
    "integer": "int64",
    "number": "double",
    "datetime": "timestamp[us] without zone",
    "text": "string",
}
_WALL_CLOCK = "New York wall-clock, without zone"


def _unlike(era: Era, column: Column, published: pa.DataType) -> str:
    """What a column would have to be to be converted without a guess; "" if it is that."""
    if pa.types.is_dictionary(published):  # what pandas makes of a category
        published = published.value_type
    simple = str(published).split("[")[0].split("(")[0].rstrip("0123456789")
    coded_number = column.name in era.coded.split() and simple in _CONVERTIBLE["number"]
    if simple not in _CONVERTIBLE[column.kind] and not coded_number:
        return column.kind
    if pa.types.is_timestamp(published) and published.tz is not None:
        return _WALL_CLOCK
    return ""


def _how_to_save(column: Column, expected: str) -> str:
    if expected == _WALL_CLOCK:
        return "save it so (pandas: dt.tz_convert('America/New_York').dt.tz_localize(None); Spark: TIMESTAMP_NTZ)"
    return _TYPE.format(_TLC_TYPES[column.kind])


def match(
    trip_month: TripMonth,
    ending: Ending,
    names: Sequence[str],
    types: Sequence[pa.DataType] | None = None,
    rule: SchemaRule = "strict",
) -> Shape:
    """Map a file's column names (and Arrow types, where it has any) to the canonical columns of its color.

    A column of today's schema is welcome in any month; one that no schema knows, one that the era has and the file lacks,
    one given twice, or one of a kind that cannot be converted raises `SchemaMismatch` with a table of all of them.
    By the rule accept_new_columns, those that no schema knows are the shape's `new` ones, if they have a name of their own.
    """
    if len(names) > _MOST_COLUMNS:
        raise SchemaMismatch(
            f"{trip_month}: the file has {len(names):,} columns, the first is {_cell(repr(names[0]))}; a file of trips has fewer"
            f" than {_MOST_COLUMNS}. Nothing was loaded; get TLC's own file."
        )
    era = _era_like(trip_month, ending, names)
    meant, lacking = _meant(era, names), _lacking(era, names)
    known = {name: column for name, column in meant.items() if column}
    given = Counter(meant.get(name) or _plain(name) for name in names)
    wrong, new = [], []
    for place, name in enumerate(names):
        column = meant.get(name)
        shown, published = _cell(repr(name)), _cell(str(types[place])) if types else f"field {place + 1}"
        began = (column and since(era, column)) or "–"
        if given[column or _plain(name)] > 1:
            wrong.append(Difference(shown, f"{published}, not alone", "one column", began, _TWICE))
        elif column:
            if types and (expected := _unlike(era, column, types[place])):
                wrong.append(Difference(shown, published, expected, began, _how_to_save(column, expected)))
        elif name not in meant:
            continue
        elif not name.strip():
            wrong.append(Difference(shown, published, "a name", "–", _NAMELESS))
        elif _plain(name) in _KEY_NAMES:
            wrong.append(Difference(shown, published, "another name: this is the key's", "–", _KEYS_NAME))
        else:
            new.append(Difference(shown, published, "no such column", "–", _ADD[rule]))
    wrong += [Difference(repr(c.name), "absent", c.kind, since(era, c), _ABSENT) for c in lacking]
    if wrong or (new and rule == "strict"):
        raise SchemaMismatch(
            f"{trip_month}: the columns are not those of {era.name}. Nothing was loaded.\n{_as_text(new + wrong)}"
            + (_RENAMED if new and lacking else "")
        )
    empty = tuple(name for name in names if _plain(name) in {_plain(name) for name in era.empty.split()})
    unknown = tuple(name for name in meant if name not in known)
    counting = tuple(name for name, index in _indexes(names).items() if index.counts)
    return Shape(era, tuple(names), tuple(known), tuple(known.values()), empty, unknown, counting)


def differences(color: str, names: Sequence[str]) -> list[str]:
    """In words, how a file with columns `names` differs from the canonical schema: renamed, absent, more."""
    meanings = _meanings(color)
    meant = {name: meanings.get(_plain(name)) for name in names}
    renamed = [f"`{name}` → `{column.name}`" for name, column in meant.items() if column and column.name != name]
    found = set(meant.values())
    absent = [f"`{column.name}`" for column in TRIP_COLUMNS[color] if column not in found]
    more = [f"`{name}`" for name, column in meant.items() if column is None]
    told = {"renamed": renamed, "not in the file, so null": absent, "in the file, without trip data": more}
    return [f"{what}: {', '.join(columns)}" for what, columns in told.items() if columns] or [
        "columns: the canonical ones"
    ]
