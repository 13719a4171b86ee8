"""Every error that this project raises on purpose, as one tree.

TripDataError            a person has to act; the same input gives the same answer, so no task is retried
├── UnknownMonth         the color, year, month or range asked for does not exist
├── BadSource            the source is no URL template that this project can read
├── SourceNotAllowed     the source is a local file or a private address, which the operator does not allow
├── ImpossibleDataset    BigQuery cannot have a dataset of that name
├── Unanswerable         the question about the lake is no query that can be answered
├── MisconfiguredBlock   a block is missing, or what it points to cannot be used
├── UnsafeScratch        the scratch folder cannot be used, or other users could change what is in it
├── DiskFull             the scratch disk has no room for the file
├── NotPublished         the source has no file for the month
│   └── RefusedMonth     the source refuses a month that it is known to have published
├── AskAgainLater        the source asks to be left alone for longer than a run waits, or the file changed meanwhile
├── Overdue              a color's newest published month is older than the run expects
├── UnreadableFile       the file is not what its name says
├── SchemaMismatch       the file's columns are not those of its era
├── TooManyRejects       more rows do not fit than a sound file can have
├── WrongMonth           most trips of the file are of other months
├── NotReconciled        two counts of the same rows differ; nothing was published
├── Gone                 an object that should be in the lake is not there
└── MonthsFailed         some months of a run could not be loaded; all others were
PassingError             it may pass by itself; tasks are retried
├── Unreachable          a server gives no answer now
└── Overtaken            another run changed an object or a month first

An error's text names the month, says what is wrong and where, and what to do next.
"""

from collections.abc import Sequence


class TripDataError(Exception):
    """A person has to act before this can succeed."""


class UnknownMonth(TripDataError):
    """The color, year, month or range asked for does not exist."""


class BadSource(TripDataError):
    """The source is no URL template that this project can read."""


class SourceNotAllowed(TripDataError):
    """The source is a local file or a private address, and the operator of this machine does not allow those."""


class ImpossibleDataset(TripDataError):
    """BigQuery cannot have a dataset of the name asked for."""


class Unanswerable(TripDataError):
    """The question about the lake is no query that can be answered."""


class MisconfiguredBlock(TripDataError):
    """A block is missing, or what it points to (bucket, database, credentials) cannot be used."""


class UnsafeScratch(TripDataError):
    """The scratch folder cannot be used, or other users could change what is in it."""


class DiskFull(TripDataError):
    """The scratch disk has no room for the file; what was written of it is deleted."""


class NotPublished(TripDataError):
    """The source has no file for this month (yet). `status` is the HTTP status that it answered with, if any."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class RefusedMonth(NotPublished):
    """The source refuses a month that it is known to have published."""


class AskAgainLater(TripDataError):
    """The source asks to be left alone for longer than a run waits, or the file changed while it was read."""


class Overdue(TripDataError):
    """The newest month published is older than the run expects. All other work of the run is done, or named here."""


class UnreadableFile(TripDataError):
    """The file is not what its name says: an HTML page, a Git LFS pointer, a truncated download, rubbish."""


class SchemaMismatch(TripDataError):
    """The file's columns are not those of its era."""


class TooManyRejects(TripDataError):
    """More rows would be quarantined than a sound file can have."""


class WrongMonth(TripDataError):
    """Most trips of the file are not of the file's month."""


class NotReconciled(TripDataError):
    """Rows were lost or invented between two stores; nothing was published."""


class Gone(TripDataError):
    """An object that should be in the lake is not there."""


class MonthsFailed(TripDataError):
    """Some months of a run could not be loaded. `done` has the outcomes of all others."""

    done: Sequence[object] = ()


class PassingError(Exception):
    """The cause may pass by itself."""


class Unreachable(PassingError):
    """A server gives no answer now."""


class Overtaken(PassingError):
    """Another run changed an object or a month first."""
