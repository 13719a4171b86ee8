"""Convert a column's values to the canonical type. A value converts without loss, or its position is reported."""

from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc

from flows.tlc.schema import KINDS, MISSING, Kind

# In microseconds since 1970. No Arrow scalars or arrays here: making the first one imports pandas, which takes a second.
_EARLIEST = -62_135_596_800_000_000  # 0001-01-01, the first day that every store accepts
_LATEST = 253_402_300_799_999_999  # 9999-12-31

_WORDS = [word for word in MISSING if word]
_PER_MICROSECOND = {"s": 1_000_000, "ms": 1_000, "us": 1}
_EXACT_DIGITS = 15  # a double represents every decimal of so many digits
_EXACT_INTEGER = 2**53
_LARGEST = str(2**63 - 1)


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column has one of the two Arrow types that the readers use for text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


# How a value may be spelled if it was published as text. Arrow accepts more: it reads 0x10 as 16, NaN as a number,
# a bare date as midnight, and a time without seconds as :00. That would make up data.
_SPELLED: dict[Kind, str] = {
    "integer": r"^[+-]?[0-9]+(\.0*)?$",
    "number": r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$",
    "datetime": r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"[ T]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6}0*)?$",
}


def _only(values: pa.Array, fits: pa.Array) -> pa.Array:
    """Return the values, with null in place of those that do not fit."""
    return pc.if_else(fits, values, pa.scalar(None, values.type))


def _well_spelled(values: pa.Array, kind: Kind) -> tuple[pa.Array, pa.Array]:
    """Return the texts, and which of them are spelled as `kind` allows.

    The texts have no blanks around them, and null in place of words for a missing value.
    """
    trimmed = pc.ascii_trim_whitespace(values)
    missing = pc.or_(pc.is_in(trimmed, pa.array(_WORDS, trimmed.type)), pc.fill_null(pc.equal(values, ""), False))
    trimmed = _only(trimmed, pc.invert(missing))
    return trimmed, pc.fill_null(pc.match_substring_regex(trimmed, _SPELLED[kind]), True)


def _to_integer(values: pa.Array) -> pa.Array:
    if is_text(values.type):  # not through a float, which rounds above 2^53
        values = pc.replace_substring_regex(values, r"^\+|\.0*$", "")
    return values.cast(pa.int64())


def _to_number(values: pa.Array) -> pa.Array:
    numbers = values.cast(pa.float64())
    if not pc.all(pc.is_finite(numbers), min_count=0).as_py():
        raise pa.ArrowInvalid("infinite")
    return numbers


def _to_datetime(values: pa.Array) -> pa.Array:
    moments = values.cast(pa.timestamp("us"))
    span = pc.min_max(moments)
    if span["min"].is_valid and (span["min"].value < _EARLIEST or span["max"].value > _LATEST):
        raise pa.ArrowInvalid("outside the years 1 to 9999")
    return moments


def _to_text(values: pa.Array) -> pa.Array:
    texts = values.cast(pa.string())
    texts.validate(full=True)  # Parquet's reader does not check that a text is UTF-8
    if pc.any(pc.match_substring(texts, "\x00"), min_count=0).as_py():
        raise pa.ArrowInvalid("NUL, which Postgres cannot store")
    return texts


_CONVERT: dict[Kind, Callable[[pa.Array], pa.Array]] = {
    "integer": _to_integer,
    "number": _to_number,
    "datetime": _to_datetime,
    "text": _to_text,
}


def _fits_integer(values: pa.Array) -> pa.Array:
    """Return which values are whole numbers that fit into 64 bits."""
    if is_text(values.type):
        digits = pc.replace_substring_regex(values, r"^[+-]?0*|\.0*$", "")
        length = pc.binary_length(digits)
        at_most = pc.if_else(pc.equal(length, len(_LARGEST)), pc.less_equal(digits, _LARGEST), True)
        least = pc.match_substring_regex(values, rf"^-0*{2**63}(\.0*)?$")
        return pc.or_(pc.and_(pc.less_equal(length, len(_LARGEST)), at_most), least)
    if pa.types.is_floating(values.type):
        in_range = pc.and_(pc.greater_equal(values, -(2.0**63)), pc.less(values, 2.0**63))
        return pc.and_(in_range, pc.equal(pc.floor(values), values))
    return pc.less_equal(values, pa.scalar(2**63 - 1, pa.uint64())) if pa.types.is_uint64(values.type) else _any(values)


def _fits_number(values: pa.Array) -> pa.Array:
    """Return which values a double can represent."""
    if pa.types.is_integer(values.type):
        wide = pa.uint64() if pa.types.is_uint64(values.type) else pa.int64()
        inside = pc.less_equal(values.cast(wide), pa.scalar(_EXACT_INTEGER, wide))
        return inside if wide == pa.uint64() else pc.and_(inside, pc.greater_equal(values, pa.scalar(-_EXACT_INTEGER)))
    return pc.is_finite(values.cast(pa.float64()))


def _fits_datetime(values: pa.Array) -> pa.Array:
    """Return which values are whole microseconds in the years 1 to 9999, on days that exist in the calendar."""
    if is_text(values.type):
        year = pc.utf8_slice_codeunits(values, 0, 4)
        last_two = pc.utf8_slice_codeunits(year, 2, 4)
        century = pc.equal(last_two, "00")
        divisible = pc.if_else(century, pc.utf8_slice_codeunits(year, 0, 2), last_two)
        leap = pc.match_substring_regex(divisible, r"^([02468][048]|[13579][26])$")
        never = pc.match_substring_regex(values, r"^(0000|.{5}(02-3|(04|06|09|11)-31))")
        return pc.and_not(pc.or_(leap, pc.invert(pc.match_substring_regex(values, r"^.{5}02-29"))), never)
    if not pa.types.is_timestamp(values.type):
        return _any(values)
    count = values.view(pa.int64())
    if values.type.unit == "ns":  # its range is the years 1677 to 2262
        return pc.equal(pc.multiply(pc.divide(count, 1000), 1000), count)
    unit = _PER_MICROSECOND[values.type.unit]
    earliest, latest = -(-_EARLIEST // unit), _LATEST // unit
    return pc.and_(pc.greater_equal(count, earliest), pc.less_equal(count, latest))


def _fits_text(values: pa.Array) -> pa.Array:
    """Return which values are UTF-8 without NUL."""
    fits = [_is_utf_8(value) for value in values.cast(pa.large_binary()).to_pylist()]
    return pa.array(fits, pa.bool_())


def _is_utf_8(value: bytes | None) -> bool:
    try:
        return value is None or "\x00" not in value.decode()
    except UnicodeDecodeError:
        return False


def _any(values: pa.Array) -> pa.Array:
    return pa.repeat(pa.scalar(True), len(values))


_FITS: dict[Kind, Callable[[pa.Array], pa.Array]] = {
    "integer": _fits_integer,
    "number": _fits_number,
    "datetime": _fits_datetime,
    "text": _fits_text,
}


def _exact(numbers: pa.Array, decimals: pa.Array) -> pa.Array:
    """Return which doubles have the same shortest spelling as the decimals that they were converted from."""
    if decimals.type.precision <= _EXACT_DIGITS:
        return _any(numbers)
    digits = pc.replace_substring_regex(decimals.cast(pa.string()), r"^-?0*\.?0*|\.?0*(E.*)?$|\.", "")
    exact = pc.fill_null(pc.less_equal(pc.binary_length(digits), _EXACT_DIGITS), True)
    doubtful = pc.indices_nonzero(pc.invert(exact))
    pairs = zip(numbers.take(doubtful).to_pylist(), decimals.take(doubtful).to_pylist(), strict=True)
    after_all = [number is None or Decimal(repr(number)) == decimal for number, decimal in pairs]
    return pc.replace_with_mask(exact, pc.invert(exact), pa.array(after_all, pa.bool_()))


def without_nan(values: pa.Array) -> pa.Array:
    """Return the values, with null in place of NaN: pandas has no other way to mark a missing number."""
    if not pa.types.is_floating(values.type):
        return values
    if pa.types.is_float16(values.type):
        values = values.cast(pa.float32())
    nan = pc.is_nan(values)
    return _only(values, pc.invert(nan)) if pc.any(nan, min_count=0).as_py() else values


def convert(values: pa.Array, kind: Kind) -> tuple[pa.Array, list[int]]:
    """Return the values as the Arrow type of `kind`, with null where they do not convert, and the positions of those."""
    # Arrow accepts no other spelling of the same length as "2021-01-31 23:59:59". The cast is faster than the pattern.
    textual = is_text(values.type)
    if kind == "datetime" and textual and pc.all(pc.equal(pc.binary_length(values), 19), min_count=0).as_py():
        with suppress(pa.ArrowInvalid):
            return _to_datetime(values), []
    decimals = values if pa.types.is_decimal(values.type) else None
    if decimals is not None:  # Arrow's cast from a decimal to a double can be off by one bit
        values = pc.replace_substring_regex(decimals.cast(pa.string()), r"^-?0E[+-]?[0-9]+$", "0")
    if kind == "number" and pa.types.is_float32(values.type):
        # The shortest decimal is the published value: 13.35. Widening would give 13.35000038.
        values = values.cast(pa.string())
    if kind not in _SPELLED or not is_text(values.type):
        return _masked(values, kind, None)
    values, fits = _well_spelled(values, kind)
    values = _only(values, fits)
    if kind == "datetime":  # Arrow accepts six digits; the pattern allows only zeros after them
        values = pc.replace_substring_regex(values, r"(\.[0-9]{6})0+$", r"\1")
    converted, bad = _masked(values, kind, fits)
    if decimals is not None and kind == "number" and not pc.all(exact := _exact(converted, decimals)).as_py():
        return _only(converted, exact), sorted({*bad, *_positions(pc.invert(exact))})
    return converted, bad


def _positions(flags: pa.Array) -> list[int]:
    found: list[int] = pc.indices_nonzero(flags).to_pylist()
    return found


def _masked(values: pa.Array, kind: Kind, spelled: pa.Array | None) -> tuple[pa.Array, list[int]]:
    """Convert the values as `convert` does. If Arrow refuses the column, first replace all values that do not fit with null."""
    misspelled = [] if spelled is None else _positions(pc.invert(spelled))
    with suppress(pa.ArrowInvalid):
        return _CONVERT[kind](values), misspelled
    fits = pc.fill_null(_FITS[kind](values), True)
    converted, left = _halve(_only(values, fits), kind)
    return converted, misspelled + _positions(pc.invert(fits)) + left


def _halve(values: pa.Array, kind: Kind) -> tuple[pa.Array, list[int]]:
    """Convert the values as `convert` does. Halving finds a few bad values among many in few steps."""
    try:
        return _CONVERT[kind](values), []
    except pa.ArrowInvalid:
        if len(values) == 1:
            return pa.nulls(1, KINDS[kind].arrow), [0]
    middle = len(values) // 2
    left, bad_left = _halve(values[:middle], kind)
    right, bad_right = _halve(values[middle:], kind)
    return pa.concat_arrays([left, right]), bad_left + [middle + position for position in bad_right]
