"""Compare two editions of a month, row by row. Both are read once, in parallel, ordered by `row_number`."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.manifest import Changes


def _changed(old: pa.Table, new: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Return for each column which of these aligned rows differ. Null equals null."""
    changed = {}
    for field in new.schema:
        now = new.column(field.name)
        # An older schema does not have every column.
        was = old.column(field.name) if field.name in old.column_names else pa.nulls(len(now), field.type)
        same = pc.or_(pc.fill_null(pc.equal(was, now), False), pc.and_(pc.is_null(was), pc.is_null(now)))
        changed[field.name] = pc.invert(same)
    return changed


def _any_of(changed: Iterable[pa.ChunkedArray], rows: int) -> pa.ChunkedArray:
    """Return which of `rows` rows differ in any column."""
    differ = pa.chunked_array([pa.repeat(pa.scalar(False), rows)])
    for column in changed:
        differ = pc.or_(differ, column)
    return differ


def _in_both(old: pa.Table, new: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows with keys that both tables have: those of `old`, then those of `new`, in the same order."""
    if old.column("row_number").equals(new.column("row_number")):  # the usual case; it copies nothing
        return old, new
    where = pc.index_in(new.column("row_number"), value_set=old.column("row_number").combine_chunks())
    return old.take(where.drop_null()), new.filter(pc.is_valid(where))


def _windows(old: Iterable[pa.Table], new: Iterable[pa.Table]) -> Iterator[tuple[pa.Table | None, pa.Table | None]]:
    """Yield pairs of tables, one per stream, for the same range of row numbers; None for a stream that has ended."""
    streams: list[Iterator[pa.Table]] = [(table for table in tables if table.num_rows) for tables in (old, new)]
    current: list[pa.Table | None] = [next(stream, None) for stream in streams]
    while current[0] is not None and current[1] is not None:
        limit = min(table.column("row_number")[-1].as_py() for table in current if table is not None)
        parts = []
        for side, table in enumerate(current):
            assert table is not None  # noqa: S101 - the loop's condition; the type checker needs it here
            cut = pc.sum(pc.less_equal(table.column("row_number"), limit)).as_py()
            parts.append(table.slice(0, cut))
            current[side] = table.slice(cut) if cut < table.num_rows else next(streams[side], None)
        yield parts[0], parts[1]
    for side, stream in enumerate(streams):
        while current[side] is not None:
            yield (current[0], None) if side == 0 else (None, current[1])
            current[side] = next(stream, None)


def compare(old: Iterable[pa.Table], new: Iterable[pa.Table]) -> Changes:
    """Count the changes from `old` to `new`, two streams of trips, each ordered by `row_number`."""
    changes = Changes()
    for was, now in _windows(old, new):
        if was is None or now is None:
            changes += Changes(inserted=_rows(now), removed=_rows(was))
            continue
        before, after = _in_both(was, now)
        differ = _any_of(_changed(before, after).values(), after.num_rows)
        changes += Changes(
            inserted=now.num_rows - after.num_rows,
            updated=int(pc.sum(differ, min_count=0).as_py()),
            removed=was.num_rows - after.num_rows,
        )
    return changes


def _rows(table: pa.Table | None) -> int:
    return 0 if table is None else int(table.num_rows)


MISSING, FOREIGN = "is missing", "was not published"
NAMED = 5
"""How many rows that differ a message names. It counts all others."""


def differences(found: Iterable[pa.Table], expected: Iterable[pa.Table]) -> Iterator[tuple[int, str]]:
    """Yield the number of each row of `found` that is not as `expected`, and what is wrong: `MISSING`, `FOREIGN`, or columns.

    Both are streams of trips, each ordered by `row_number`. Results are in no defined order. Only the first rows
    that differ have column names, the others have "": finding the names takes longer than comparing the rows.
    """
    for there, wanted in _windows(found, expected):
        if there is None or wanted is None:
            yield from _each(there, FOREIGN)
            yield from _each(wanted, MISSING)
            continue
        before, after = _in_both(there, wanted)
        keys = after.column("row_number").combine_chunks()
        yield from _each(there.filter(pc.invert(pc.is_in(there.column("row_number"), value_set=keys))), FOREIGN)
        yield from _each(wanted.filter(pc.invert(pc.is_in(wanted.column("row_number"), value_set=keys))), MISSING)
        changed = _changed(before, after)
        differing = pc.indices_nonzero(_any_of(changed.values(), after.num_rows))
        for position in differing[:NAMED].to_pylist():
            yield (
                keys[position].as_py(),
                ", ".join(name for name, differs in changed.items() if differs[position].as_py()),
            )
        yield from _each(after.take(differing[NAMED:]), "")


def _each(rows: pa.Table | None, what: str) -> Iterator[tuple[int, str]]:
    return ((number, what) for number in (rows.column("row_number").to_pylist() if rows is not None else ()))
