"""Every error that this project raises on purpose, as one tree.

TripDataError   a person has to act; a retry would fail in the same way, so no task is retried
├── request     UnknownMonth, UnknownEdition, BadSource, SourceNotAllowed, ImpossibleDataset, Unanswerable
├── machine     MisconfiguredBlock, UnsafeScratch, DiskFull
├── source      NotPublished (with RefusedMonth), AskAgainLater, Overdue
├── file        UnreadableFile, SchemaMismatch, TooManyRejects, WrongMonth
├── store       NotReconciled, Gone (with Vanished), VerificationFailed
└── run         MonthsFailed
PassingError    the cause may go away by itself; tasks are retried
└── server      Unreachable, Overtaken

An error's text names the month. It says what is wrong, where it is wrong, and what to do next.

The first paragraph of a docstring says what an error means, the second what to do. docs/operations.md shows both: run
`make generated` after a change.
"""

from collections.abc import Sequence


class TripDataError(Exception):
    """A person has to act before this can succeed.

    Do what the text says. The error of this general class is about parameters, or about a month that a store does not have.
    """


class UnknownMonth(TripDataError):
    """The requested color, year, month or range does not exist.

    Correct the parameters. No work was done.
    """


class UnknownEdition(TripDataError):
    """The requested edition of a month is not in the lake, or its name fits several editions or none.

    List the editions with `python flows/catalog.py --editions green 2021-01`, and name one of them.
    """


class BadSource(TripDataError):
    """The source is not a URL template that this project can read.

    Correct `source`: `official`, `mirror`, or a template such as `https://host/{color}_tripdata_{year}-{month:02d}.parquet`.
    """


class SourceNotAllowed(TripDataError):
    """The source is a local file or a private address, and the operator of this machine does not allow it.

    Set `TRIPS_ALLOW_SOURCES` where the flow runs, or use a public source: see [secrets](secrets.md#what-a-source-may-name).
    """


class ImpossibleDataset(TripDataError):
    """BigQuery does not accept the dataset's name.

    Correct `dataset`: letters, digits and underscores.
    """


class Unanswerable(TripDataError):
    """The query cannot be answered from the lake.

    Correct the SQL, or install DuckDB: see [query](query.md).
    """


class MisconfiguredBlock(TripDataError):
    """A block is missing, or what it points to (bucket, database, credentials) cannot be used.

    Correct the block with `python -m blocks.register` or in the UI, or give its account the rights that the text names. Move
    away a table or object that the text names.
    """


class UnsafeScratch(TripDataError):
    """The scratch folder cannot be used, or other users could change its files.

    Point `TRIPS_SCRATCH` at a folder that only this user can write to.
    """


class DiskFull(TripDataError):
    """The scratch disk has no room for the file. The part already written is deleted.

    Free some room, or point `TRIPS_SCRATCH` at a larger disk.
    """


class NotPublished(TripDataError):
    """The source has no file for this month (yet).

    Wait: TLC publishes about two months late. If the month should be there, check `source`.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status  # the HTTP status of the source's answer, if any


class RefusedMonth(NotPublished):
    """The source refuses a month that was published before.

    Open the address from another network: a proxy may block this machine. If the publisher withdrew the month, see
    [schedules](schedules.md#what-a-run-does).
    """


class AskAgainLater(TripDataError):
    """The source asks for a longer pause than a run waits, or the file changed while it was read.

    Run again after the time that the text names, or at once if the file changed.
    """


class Overdue(TripDataError):
    """A color's newest published month is older than the run expects. Raised after all other work of the run.

    Look at the publisher's page. If it is only late, raise `expect_within`. If its addresses changed, change `source`.
    """


class UnreadableFile(TripDataError):
    """The file is not what its name says: an HTML page, a Git LFS pointer, a truncated download, or damaged bytes.

    Run again. If the text stays the same, get the file from another source, or report it to the publisher: see
    [damage](damage.md). If the text names an object in the lake, do what it says.
    """


class SchemaMismatch(TripDataError):
    """The file's columns are not those of its era.

    Compare the columns that the text lists with [eras](eras.md). For new columns, use `--schema accept_new_columns`. For a
    table or object, do what the text says.
    """


class TooManyRejects(TripDataError):
    """More rows would be quarantined than a sound file can have.

    Look at the row and the reasons that the text names. Get the file again, or from another source: see [damage](damage.md).
    """


class WrongMonth(TripDataError):
    """Most trips of the file belong to other months.

    Check `source`: the file under this name has the trips of another month.
    """


class NotReconciled(TripDataError):
    """Two counts of the same rows differ; nothing was published.

    Run again. If it fails again, look for another program that writes to the store: `python flows/verify.py`.
    """


class Gone(TripDataError):
    """An object that should be in the lake is missing.

    Run the flow that the text names. If objects vanish again, look for a lifecycle rule of the bucket.
    """


class Vanished(Gone):
    """An object or a staging table of the month was replaced, changed or deleted during this run.

    Nothing at first: a run looks the month up once more. If it fails all the same, run it again.
    """


class VerificationFailed(TripDataError):
    """A store does not have what was published: rows, objects or manifests were changed by something else.

    Run the command that the text names for each month: see [verify](verify.md#mending).
    """


class MonthsFailed(TripDataError):
    """Some months of a run could not be loaded.

    Read the reason of each month in the text; each is one of the errors of this table. All other months are loaded. After the
    mending, run the same command again.
    """

    done: Sequence[object] = ()  # the outcomes of all other months


class PassingError(Exception):
    """The cause may go away by itself.

    Nothing at first: tasks are retried. If the run fails, run again.
    """


class Unreachable(PassingError):
    """A server does not answer now.

    Nothing at first. If the run fails, check that the server runs and that this machine reaches it. Then run again.
    """


class Overtaken(PassingError):
    """Another run changed an object or a month first.

    Nothing at first. If the run fails, run again after the other run ended.
    """
