"""Count what a re-published month changed. Read both editions once, in parallel, in the order of their key `row_number`."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.manifest import Changes


def _differ(old: pa.Table, new: pa.Table) -> int:
    """Return how many of these aligned rows differ. Null equals null."""
    changed = pa.chunked_array([pa.repeat(pa.scalar(False), new.num_rows)])
    for field in new.schema:
        now = new.column(field.name)
        # An older schema does not have every column.
        was = old.column(field.name) if field.name in old.column_names else pa.nulls(len(now), field.type)
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
    current: list[pa.Table | None] = [next(stream, None) for stream in streams]
    while current[0] is not None and current[1] is not None:
        limit = min(table.column("row_number")[-1].as_py() for table in current if table is not None)
        parts = []
        for side, table in enumerate(current):
            assert table is not None  # noqa: S101 - the loop's condition; the type checker needs it here
            cut = pc.sum(pc.less_equal(table.column("row_number"), limit)).as_py()
            parts.append(table.slice(0, cut))
            current[side] = table.slice(cut) if cut < table.num_rows else next(streams[side], None)
        changes += _window(parts[0], parts[1])
    removed, inserted = (
        (table.num_rows if table is not None else 0) + sum(more.num_rows for more in stream)
        for table, stream in zip(current, streams, strict=True)
    )
    return changes + Changes(inserted=inserted, removed=removed)
