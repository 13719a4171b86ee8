"""What a re-published month changed, by key: both editions are read once, side by side, in order of `row_number`."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.manifest import Changes


def _column(trips: pa.Table, name: str, kind: pa.DataType) -> pa.ChunkedArray:
    if name in trips.column_names:
        return trips.column(name)
    return pa.chunked_array([pa.nulls(trips.num_rows, kind)])  # an older schema had no such column


def _differ(old: pa.Table, new: pa.Table) -> int:
    """How many of these aligned rows differ; null equals null."""
    changed = pa.chunked_array([pa.repeat(pa.scalar(False), new.num_rows)])
    for field in new.schema:
        was, now = _column(old, field.name, field.type), new.column(field.name)
        same = pc.or_(pc.fill_null(pc.equal(was, now), False), pc.and_(pc.is_null(was), pc.is_null(now)))
        changed = pc.or_(changed, pc.invert(same))
    return int(pc.sum(changed, min_count=0).as_py())


def _window(old: pa.Table, new: pa.Table) -> Changes:
    where = pc.index_in(new.column("row_number"), value_set=old.column("row_number").combine_chunks())
    in_both = pc.is_valid(where)
    common = new.filter(in_both)
    return Changes(
        inserted=new.num_rows - common.num_rows,
        updated=_differ(old.take(where.drop_null()), common),
        removed=old.num_rows - common.num_rows,
    )


def compare(old: Iterable[pa.Table], new: Iterable[pa.Table]) -> Changes:
    """Count the changes from `old` to `new`, two streams of trips, each ordered by `row_number`."""
    changes = Changes()
    streams: list[Iterator[pa.Table]] = [(table for table in tables if table.num_rows) for tables in (old, new)]
    held: list[pa.Table | None] = [next(stream, None) for stream in streams]
    while held[0] is not None and held[1] is not None:
        limit = min(table.column("row_number")[-1].as_py() for table in held if table is not None)
        parts = []
        for side, table in enumerate(held):
            assert table is not None  # noqa: S101 - the loop's condition, for the type checker
            cut = pc.sum(pc.less_equal(table.column("row_number"), limit)).as_py()
            parts.append(table.slice(0, cut))
            held[side] = table.slice(cut) if cut < table.num_rows else next(streams[side], None)
        changes += _window(parts[0], parts[1])
    removed, inserted = (
        (table.num_rows if table is not None else 0) + sum(more.num_rows for more in stream)
        for table, stream in zip(held, streams, strict=True)
    )
    return changes + Changes(inserted=inserted, removed=removed)
