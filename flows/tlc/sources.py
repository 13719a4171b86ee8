"""Where a month's file is published, what it is, and the kinds of file that count: the ending tells."""

import string
from dataclasses import dataclass
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from flows.tlc.errors import UnknownMonth
from flows.tlc.trips import TripMonth

Ending = Literal[".parquet", ".csv", ".csv.gz"]
ENDINGS: tuple[Ending, ...] = (".parquet", ".csv.gz", ".csv")

# TLC's own files, and DataTalksClub's mirror of the CSVs TLC published until 2022.
TEMPLATES = {
    "official": "https://d37ci6vzurychx.cloudfront.net/trip-data/{color}_tripdata_{year}-{month:02d}.parquet",
    "mirror": "https://github.com/DataTalksClub/nyc-tlc-data/releases/download/{color}/{color}_tripdata_{year}-{month:02d}.csv.gz",
}


# What a run is asked for; in the UI a choice between the two that have names, and a field for any other.
SourceName = (
    Annotated[Literal["official", "mirror"], Field(title="known source")] | Annotated[str, Field(title="URL template")]
)


@dataclass(frozen=True)
class Source:
    """A place that publishes months: a URL template whose ending tells the files' format."""

    template: str

    def __post_init__(self) -> None:
        try:
            secret = "@" in urlsplit(self.template).netloc
            fields = [field for field in string.Formatter().parse(self.template) if field[1] is not None]
        except ValueError as error:
            raise UnknownMonth(f"source {self.template!r} is not a URL template: {error}.") from error
        if secret:  # URLs go into logs and manifests; so this one is not even named here
            raise UnknownMonth("source holds a user name or password; publish the files where none is needed.")
        if not self.template.startswith(("http://", "https://", "file://")):
            words = ", ".join(TEMPLATES)
            raise UnknownMonth(
                f"source {self.template!r} is neither one of {words} nor an http(s):// or file:// URL template."
            )
        names = {name for _, name, _, _ in fields}
        if unknown := names - {"color", "year", "month"}:
            raise UnknownMonth(
                f"source {self.template!r} has unknown fields {sorted(map(str, unknown))}; use color, year, month."
            )
        # A format could name fields of its own, and ask for a text of any width.
        for _, name, spec, conversion in fields:
            if conversion or spec not in ("", "d", "02d", "04d") or (spec and name == "color"):
                raise UnknownMonth(
                    f"source {self.template!r}: {name} may be written {{{name}}}"
                    + ("." if name == "color" else f" or {{{name}:{'04d' if name == 'year' else '02d'}}}.")
                )
        if not {"year", "month"} <= names:
            raise UnknownMonth(
                f"source {self.template!r} would give every month one file; it needs {{year}} and {{month:02d}}."
            )
        if not self.template.endswith(ENDINGS):
            raise UnknownMonth(
                f"source {self.template!r} must end in one of {', '.join(ENDINGS)}: that tells the format."
            )

    @property
    def ending(self) -> Ending:
        """The ending of every file here."""
        return next(ending for ending in ENDINGS if self.template.endswith(ending))

    def url(self, trip_month: TripMonth) -> str:
        """Where this source publishes a month."""
        return trip_month.url(self.template)


class PublishedFile(BaseModel):
    """What the source said of a month's file when asked, before any byte of it was read."""

    model_config = ConfigDict(frozen=True)

    trip_month: TripMonth
    url: str
    ending: Ending
    etag: str | None
    last_modified: str | None
    size: int | None

    @property
    def identity(self) -> str | None:
        """What the file *is*: address, version and size; None where the source tells no version."""
        return f"{self.url} {self.etag} {self.size}" if self.etag else None
