"""Make small files in TLC's formats, and read whole files."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flows.tlc.clean import Chunk, Tally
from flows.tlc.matching import Shape
from flows.tlc.reading_csv import csv_chunks
from flows.tlc.reading_parquet import parquet_chunks
from flows.tlc.sources import Ending
from flows.tlc.trips import TripMonth

GREEN = TripMonth("green", 2021, 1)
FHV = TripMonth("fhv", 2021, 1)

# One valid trip, in the order of the file. Tests change it to make odd trips.
TRIP = {
    "VendorID": "2",
    "lpep_pickup_datetime": "2021-01-01 00:15:56",
    "lpep_dropoff_datetime": "2021-01-01 00:19:52",
    "store_and_fwd_flag": "N",
    "RatecodeID": "1",
    "PULocationID": "43",
    "DOLocationID": "151",
    "passenger_count": "1",
    "trip_distance": "1.01",
    "fare_amount": "5.5",
    "extra": "0.5",
    "mta_tax": "0.5",
    "tip_amount": "0",
    "tolls_amount": "0",
    "ehail_fee": "",
    "improvement_surcharge": "0.3",
    "total_amount": "6.8",
    "payment_type": "2",
    "trip_type": "1",
    "congestion_surcharge": "0",
}
HEADER = ",".join(TRIP)
FHV_HEADER = "dispatching_base_num,pickup_datetime,dropoff_datetime,PULocationID,DOLocationID,SR_Flag"
FHV_LINE = "B00009,2021-01-01 00:27:00,2021-01-01 00:44:00,264,265,"


def times(month: TripMonth) -> dict[str, str]:
    """Return the times of the valid trip, moved to a month."""
    return {
        name: text.replace("2021-01", f"{month.year}-{month.month:02d}")
        for name, text in TRIP.items()
        if "time" in name
    }


def line(**fields: str) -> str:
    """Return a green trip as a line of CSV. `fields` replaces values."""
    return ",".join((TRIP | fields).values())


def csv_file(*lines: str, header: str = HEADER, end: str = "\r\n") -> bytes:
    """Return a CSV file with a header and these lines."""
    return end.join([header, *lines, ""]).encode()


@dataclass(frozen=True)
class Read:
    """The chunks of a file that was read to its end."""

    chunks: list[Chunk]

    @property
    def shapes(self) -> list[Shape]:
        """The different shapes of the chunks."""
        return list(dict.fromkeys(chunk.shape for chunk in self.chunks if chunk.shape))

    @property
    def trips(self) -> pa.Table:
        return pa.concat_tables(chunk.trips for chunk in self.chunks)

    @property
    def rejects(self) -> list[dict[str, Any]]:
        rejects: list[dict[str, Any]] = pa.concat_tables(chunk.rejects for chunk in self.chunks).to_pylist()
        return rejects

    @property
    def tally(self) -> Tally:
        tally = Tally()
        for chunk in self.chunks:
            tally.add(chunk)
        return tally

    def values(self, column: str) -> list[Any]:
        values: list[Any] = self.trips.column(column).to_pylist()
        return values


def read_csv(data: bytes | Iterable[bytes], month: TripMonth = GREEN, ending: Ending = ".csv") -> Read:
    """Read a whole CSV file."""
    return Read(list(csv_chunks(month, ending, [data] if isinstance(data, bytes) else data)))


def read_parquet(data: bytes, month: TripMonth = GREEN) -> Read:
    """Read a whole Parquet file."""
    return Read(list(parquet_chunks(month, io.BytesIO(data))))


_PARQUET_TYPES = {
    **dict.fromkeys(TRIP, pa.float64()),
    **dict.fromkeys(("VendorID", "PULocationID", "DOLocationID"), pa.int64()),
    **dict.fromkeys(("lpep_pickup_datetime", "lpep_dropoff_datetime"), pa.timestamp("us")),
    "store_and_fwd_flag": pa.string(),
}


def table(rows: int = 1, month: TripMonth = GREEN, **columns: Any) -> pa.Table:
    """Return valid green trips in the layout of TLC's Parquet of 2021. `columns` replaces columns; None removes one."""
    texts = {name: pa.array([text or None] * rows) for name, text in (TRIP | times(month)).items()}
    valid = {name: text.cast(_PARQUET_TYPES[name]) for name, text in texts.items()}
    return pa.table({name: values for name, values in (valid | columns).items() if values is not None})


def parquet_file(trips: pa.Table, **options: Any) -> bytes:
    """Return a table as the bytes of a Parquet file."""
    out = io.BytesIO()
    pq.write_table(trips, out, **options)
    return out.getvalue()
