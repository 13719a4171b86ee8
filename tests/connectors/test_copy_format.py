"""Postgres reads back exactly the values that the COPY encoder wrote."""

import datetime as dt
import io
import math
from contextlib import closing

import psycopg2
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.connectors import copy_format
from flows.connectors.copy_format import encode, table_of, write_rejects
from flows.connectors.postgres import _Stream
from flows.tlc.clean import rejects_table
from local.servers.stack import Stack

SCHEMA = pa.schema(
    [("i", pa.int64()), ("d", pa.float64()), ("t", pa.timestamp("us")), ("s", pa.string()), ("u", pa.string())]
)
ROW = st.tuples(
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)),
    st.none() | st.sampled_from(["", "N", "Y", " ", "ÅÄÖ", "N/A", '"', "\n"]),
    st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12),
)


def through_postgres(stack: Stack, tables: list[pa.Table]) -> list[tuple]:
    connection = psycopg2.connect(stack.env["POSTGRES_URL"])
    try:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE t (i bigint, d double precision, t timestamp, s text, u text)")
            cursor.copy_expert("COPY t FROM STDIN (FORMAT binary)", _Stream(encode(tables, SCHEMA)))
            cursor.execute("SELECT * FROM t")
            return cursor.fetchall()
    finally:
        connection.close()


def table(rows: list[tuple]) -> pa.Table:
    return pa.table([pa.array([row[n] for row in rows], field.type) for n, field in enumerate(SCHEMA)], schema=SCHEMA)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(ROW, max_size=6), max_size=4))
def test_every_value_is_read_back_unchanged(stack: Stack, parts: list[list[tuple]]):
    rows = [row for part in parts for row in part]
    assert through_postgres(stack, [table(part) for part in parts]) == rows


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, max_size=6))
def test_what_postgres_sends_as_csv_is_read_as_it_is(stack: Stack, rows: list[tuple]):
    connection, sent = psycopg2.connect(stack.env["POSTGRES_URL"]), io.BytesIO()
    try:
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE t (i bigint, d double precision, t timestamp, s text, u text)")
            cursor.copy_expert("COPY t FROM STDIN (FORMAT binary)", _Stream(encode([table(rows)], SCHEMA)))
            cursor.copy_expert("COPY t TO STDOUT (FORMAT csv)", sent)
    finally:
        connection.close()
    assert table_of(sent.getvalue(), SCHEMA).to_pylist() == table(rows).to_pylist()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(["", '","', "\n", "\\.", "\0"])))
def test_quarantined_rows_are_read_back_unchanged_except_for_nul(stack: Stack, originals: list[str]):
    rejects, out = [(n, "reason", text) for n, text in enumerate(originals)], io.BytesIO()
    for part in (rejects[:2], rejects[2:]):
        write_rejects(rejects_table(part), out)
    out.seek(0)
    with closing(psycopg2.connect(stack.env["POSTGRES_URL"])) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE r (n bigint, reason text, original text)")
        cursor.copy_expert("COPY r FROM STDIN (FORMAT csv)", out)
        cursor.execute("SELECT * FROM r ORDER BY n")
        assert cursor.fetchall() == [(n, reason, text.replace("\0", r"\x00")) for n, reason, text in rejects]


def test_only_the_rows_of_a_slice_are_encoded(stack: Stack):
    whole = table([(n, n / 2, dt.datetime(2021, 1, 1, 0, 0, n), None if n % 3 else "x" * n, str(n)) for n in range(20)])
    assert through_postgres(stack, [whole.slice(7, 5)]) == [
        tuple(row.values()) for row in whole.slice(7, 5).to_pylist()
    ]


def test_a_very_long_text_does_not_enlarge_the_buffer_of_every_row(stack: Stack, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(copy_format, "_ROWS", 3)
    rows = [(n, None, None, "x" * (5000 if n == 3 else 1), None) for n in range(10)]
    assert through_postgres(stack, [table(rows)]) == rows
    assert max(len(piece) for piece in encode([table(rows)], SCHEMA)) < 6000


def test_negative_zero_and_the_smallest_numbers_are_read_back_unchanged(stack: Stack):
    [(_, zero, *_), (_, small, *_)] = through_postgres(
        stack, [table([(0, -0.0, None, None, None), (0, 5e-324, None, None, None)])]
    )
    assert (math.copysign(1, zero), small) == (-1, 5e-324)
