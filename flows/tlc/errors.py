"""What can be wrong with a request or with a published file; every text names the month and says what to do next.

None of these is worth a retry: the same input gives the same answer.
"""


class TripDataError(Exception):
    """A trip month cannot be loaded, for a reason that a person has to act on."""


class UnknownMonth(TripDataError):
    """The color, year or month asked for does not exist."""


class SourceNotAllowed(TripDataError):
    """The source is a local file or a private address, and the operator of this machine does not allow those."""


class ImpossibleDataset(TripDataError):
    """The warehouse cannot have a dataset of the name asked for."""


class NotPublished(TripDataError):
    """The source has no file for this month (yet). `status` is the HTTP status that it answered with, if any."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


class RefusedMonth(NotPublished):
    """The source refuses a month that it is known to have published."""


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


class MisconfiguredBlock(TripDataError):
    """A block is missing, or what it points to (bucket, database, credentials) cannot be used."""
