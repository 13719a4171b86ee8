"""In a struct of Thrift, every field and element counts against the limit, and a size is checked before it is used."""

import pytest

from flows.tlc.thrift import CutOff, TooManyValues, integer, places, read_struct, varint

TRUES = b"\x11" * 2_000 + b"\0"  # a struct with 2,000 fields that are true
LIST_OF_TRUES = b"\x19\xf1" + b"\xd0\x0f" + b"\x01" * 2_000 + b"\0"  # a struct with one list of 2,000 elements
LIST_OF_EMPTY_STRUCTS = b"\x19\xfc" + b"\xd0\x0f" + b"\0" * 2_000 + b"\0"


@pytest.mark.parametrize("data", [TRUES, LIST_OF_TRUES, LIST_OF_EMPTY_STRUCTS], ids=["fields", "booleans", "structs"])
def test_every_field_and_element_counts_against_the_limit(data: bytes) -> None:
    assert read_struct(data, 2_001)[1] == len(data)
    with pytest.raises(TooManyValues):
        read_struct(data, 1_999)


def test_a_list_that_is_longer_than_the_rest_of_the_bytes_is_cut_off_before_an_element_is_read() -> None:
    with pytest.raises(CutOff):  # an element without a limit left would raise `TooManyValues`
        read_struct(b"\x19\xf1" + b"\xd0\x0f" + b"\x01" * 1_999, 1)


def test_booleans_keep_their_values() -> None:
    assert read_struct(b"\x11\x12\x19\x21\x01\x02\0", 10) == ({1: True, 2: False, 3: [True, False]}, 7)


@pytest.mark.parametrize("number", [0, 1, -1, 63, -64, 64, 300, 2**31, -(2**63), 2**63 - 1])
def test_an_integer_is_read_as_it_was_written(number: int) -> None:
    assert read_struct(b"\x16" + integer(number) + b"\0", 1) == ({1: number}, 2 + len(integer(number)))


def test_places_are_those_of_the_values() -> None:
    numbers = integer(5) + b"\x16" + integer(-300)
    inner = b"\x16" + integer(7) + b"\0"
    data = b"\x16" + numbers + b"\x19\x2c" + inner + inner + b"\0"
    found = [(path, value, data[place.start : place.end]) for path, value, place in places(data, 100)]
    assert found == [
        ((1,), 5, integer(5)),
        ((2,), -300, integer(-300)),
        ((3, 1), 7, integer(7)),
        ((3, 1), 7, integer(7)),
        ((3,), [{1: 7}, {1: 7}], b"\x2c" + inner + inner),
    ]
    assert varint(300) == b"\xac\x02"
    with pytest.raises(CutOff):
        places(data[:-1], 100)
