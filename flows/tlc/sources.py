"""Where a month's file is published, what its source says about it, and the file formats that are read."""

import string
from dataclasses import dataclass
from typing import Annotated, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from flows.tlc.addresses import SCHEMES, BadAddress, escaped, parsed, path_of, shown, stored
from flows.tlc.errors import BadSource
from flows.tlc.trips import TripMonth

Ending = Literal[".parquet", ".csv", ".csv.gz"]
ENDINGS: tuple[Ending, ...] = (".parquet", ".csv.gz", ".csv")

# TLC's own files, and DataTalksClub's mirror of the CSVs TLC published until 2022.
TEMPLATES = {
    "official": "https://d37ci6vzurychx.cloudfront.net/trip-data/{color}_tripdata_{year}-{month:02d}.parquet",
    "mirror": "https://github.com/DataTalksClub/nyc-tlc-data/releases/download/{color}/{color}_tripdata_{year}-{month:02d}.csv.gz",
}


# A flow's `source` parameter. The UI shows a choice between the two named sources, and a field for a URL template.
SourceName = (
    Annotated[Literal["official", "mirror"], Field(title="known source")] | Annotated[str, Field(title="URL template")]
)


# The size limit of a month's file: four times the largest published file. Parquet: fhvhv_tripdata_2019-03, from
# flows/tlc/known_months.csv. CSV: months of yellow_tripdata_2009 to 2014 have up to 2.7 GB, and a quarter of that as gzip.
LARGEST: dict[Ending, int] = {".parquet": 4 * 610_854_382, ".csv": 4 * 2_700_000_000, ".csv.gz": 4 * 700_000_000}


def ending_of(url: str) -> Ending | None:
    """Return the ending of an address's path, or None if it is not one of `ENDINGS`."""
    path = path_of(url)
    return next((ending for ending in ENDINGS if path.endswith(ending)), None)


@dataclass(frozen=True)
class Source:
    """A place that publishes months: a URL template. Its ending gives the files' format."""

    template: str

    def __post_init__(self) -> None:
        template = shown(self.template)
        if not self.template.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
            words = ", ".join(TEMPLATES)
            raise BadSource(f"source {template!r} is neither one of {words} nor an http(s):// or file:// URL template.")
        try:
            host = parsed(self.template).netloc
            fields = [field[1:] for field in string.Formatter().parse(self.template) if field[1] is not None]
        except BadAddress as error:
            raise BadSource(f"source: {error}.") from None
        except ValueError as error:
            raise BadSource(f"source {template!r} is not a URL template: {error}.") from None
        names = {str(name) for name, _, _ in fields}
        if unknown := sorted(names - {"color", "year", "month"}):
            listed = [escaped(name, 40) for name in unknown[:20]]
            raise BadSource(f"source {template!r} has unknown fields {listed}; use color, year, month.")
        # A free format specification could name attributes, or ask for a text of any width.
        for name, spec, conversion in fields:
            if conversion or spec not in ("", "d", "02d", "04d") or (spec and name == "color"):
                raise BadSource(
                    f"source {template!r}: {name} may be written {{{name}}}"
                    + ("." if name == "color" else f" or {{{name}:{'04d' if name == 'year' else '02d'}}}.")
                )
        wrong = ""
        if not {"year", "month"} <= names:
            wrong = " would give every month one file; it needs {year} and {month:02d}."
        elif "{" in host:
            wrong = " has a field in the host's name; use fields in the path only."
        elif ending_of(self.template) is None:
            wrong = f": its path must end in one of {', '.join(ENDINGS)}: the ending gives the format."
        if wrong:
            raise BadSource(f"source {template!r}{wrong}")

    @property
    def ending(self) -> Ending:
        """Return the ending of every file of this source."""
        return cast(Ending, ending_of(self.template))

    def url(self, trip_month: TripMonth) -> str:
        """Return the address where this source publishes a month."""
        return trip_month.url(self.template)


class PublishedFile(BaseModel):
    """A source's answer about a month's file, before any byte of the file is read."""

    model_config = ConfigDict(frozen=True)

    trip_month: TripMonth
    url: str
    ending: Ending
    etag: str | None
    last_modified: str | None
    size: int | None

    @property
    def identity(self) -> str | None:
        """Return the file's address, version and size as one text; None if the source sends no version."""
        return f"{stored(self.url)} {self.etag} {self.size}" if self.etag else None

    def same_edition(self, other: "PublishedFile") -> bool | None:
        """Return whether two answers describe the same edition; None if their versions cannot be compared.

        - Different sizes: two editions.
        - Equal strong ETags: one edition.
        - Equal weak ETags: one edition unless the times differ. Servers that compress make an ETag weak.
        - Different ETags: one edition only if time and size are equal. Servers behind one name may use different ETags for
          the same file.
        - No ETags to compare: the time decides.
        """
        if None not in (self.size, other.size) and self.size != other.size:
            return False
        times = bool(self.last_modified and other.last_modified)
        same_time = times and self.last_modified == other.last_modified
        if self.etag and other.etag:
            if _opaque(self.etag) == _opaque(other.etag):
                return same_time or not times or not (is_weak(self.etag) or is_weak(other.etag))
            return same_time and self.size == other.size
        return same_time if times else None


def is_weak(etag: str) -> bool:
    """Return whether an ETag promises equivalent, not identical, bytes (RFC 9110, 8.8.1)."""
    return etag.startswith(("W/", "w/"))


def _opaque(etag: str) -> str:
    return etag[2:] if is_weak(etag) else etag
