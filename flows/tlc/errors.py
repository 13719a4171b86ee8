"""Every error that this project raises on purpose, as one tree.

TripDataError   a person has to act; a retry would fail in the same way, so no task is retried
├── request     UnknownMonth, UnknownEdition, BadSource, SourceNotAllowed, ImpossibleDataset, Unanswerable
├── machine     MisconfiguredBlock, UnsafeScratch, DiskFull
├── source      NotPublished (with RefusedMonth), AskAgainLater, Overdue
├── file        UnreadableFile, SchemaMismatch, TooManyRejects, WrongMonth
├── store       NotReconciled, Gone, VerificationFailed
└── run         MonthsFailed
PassingError    the cause may go away by itself; tasks are retried
└── server      Unreachable, Overtaken

An error's text names the month. It says what is wrong, where it is wrong, and what to do next.
"""

from collections.abc import Sequence


class TripDataError(Exception):
    """A person has to act before this can succeed."""


class UnknownMonth(TripDataError):
    """The requested color, year, month or range does not exist."""


class UnknownEdition(TripDataError):
    """The requested edition of a month is not in the lake, or its name fits several editions or none."""


class BadSource(TripDataError):
    """The source is not a URL template that this project can read."""


class SourceNotAllowed(TripDataError):
    """The source is a local file or a private address, and the operator of this machine does not allow it."""


class ImpossibleDataset(TripDataError):
    """BigQuery does not accept the dataset's name."""


class Unanswerable(TripDataError):
    """The query cannot be answered from the lake."""


class MisconfiguredBlock(TripDataError):
    """A block is missing, or what it points to (bucket, database, credentials) cannot be used."""


class UnsafeScratch(TripDataError):
    """The scratch folder cannot be used, or other users could change its files."""


class DiskFull(TripDataError):
    """The scratch disk has no room for the file. The part already written is deleted."""


class NotPublished(TripDataError):
    """The source has no file for this month (yet). `status` is the HTTP status of its answer, if any."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class RefusedMonth(NotPublished):
    """The source refuses a month that is known to be published."""


class AskAgainLater(TripDataError):
    """The source asks for a longer pause than a run waits, or the file changed while it was read."""


class Overdue(TripDataError):
    """A color's newest published month is older than the run expects. Raised after all other work of the run."""


class UnreadableFile(TripDataError):
    """The file is not what its name says: an HTML page, a Git LFS pointer, a truncated download, or damaged bytes."""


class SchemaMismatch(TripDataError):
    """The file's columns are not those of its era."""


class TooManyRejects(TripDataError):
    """More rows would be quarantined than a sound file can have."""


class WrongMonth(TripDataError):
    """Most trips of the file belong to other months."""


class NotReconciled(TripDataError):
    """Two counts of the same rows differ; nothing was published."""


class Gone(TripDataError):
    """An object that should be in the lake is missing."""


class VerificationFailed(TripDataError):
    """A store does not have what was published: rows, objects or manifests were changed by something else."""


class MonthsFailed(TripDataError):
    """Some months of a run could not be loaded. `done` lists the outcomes of all others."""

    done: Sequence[object] = ()


class PassingError(Exception):
    """The cause may go away by itself."""


class Unreachable(PassingError):
    """A server does not answer now."""


class Overtaken(PassingError):
    """Another run changed an object or a month first."""
