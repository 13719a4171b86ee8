"""The zone file is read as published: texts such as N/A stay text, and every id occurs once."""

import csv

import pytest

from flows.tlc.errors import SchemaMismatch
from flows.tlc.manifest import Changes
from flows.tlc.zones import ZoneFile, changed, read_zones
from tests.real_files import DATA, needs_real_files

REAL = DATA / "zones" / "taxi_zone_lookup.csv"
TEXT = 'LocationID,Borough,Zone,service_zone\r\n264,Unknown,NA,N/A\r\n1,EWR,"Newark, ""the"" Airport",\r\n'


def file(content: bytes) -> ZoneFile:
    return ZoneFile(url="https://example.com/zones.csv", etag=None, last_modified=None, content=content)


@pytest.mark.parametrize("edition", [TEXT, "\ufeff" + TEXT, TEXT.replace("\r\n", "\n"), TEXT.replace("L", "l", 1)])
def test_a_bom_line_ends_and_the_case_of_the_header_make_no_difference(edition: str) -> None:
    assert [tuple(zone.values()) for zone in read_zones(file(edition.encode())).to_pylist()] == [
        (264, "Unknown", "NA", "N/A"),
        (1, "EWR", 'Newark, "the" Airport', None),
    ]


def test_changes_are_counted_by_id_in_any_order() -> None:
    old, new = (read_zones(file(text.encode())) for text in (TEXT, TEXT.replace("264,Unknown", "265,Unknown")))
    assert changed(None, old) == Changes(inserted=2)
    assert changed(old, old.take([1, 0])) == Changes()
    assert changed(old, new) == Changes(inserted=1, removed=1)


@needs_real_files
def test_the_real_zone_file_is_read_completely() -> None:
    zones = [tuple(map(str, zone.values())) for zone in read_zones(file(REAL.read_bytes())).to_pylist()]
    with REAL.open(newline="") as published:
        assert zones == [tuple(row) for row in csv.reader(published)][1:]
    assert len(zones) == 265


def test_the_error_for_another_file_does_not_quote_it() -> None:
    with pytest.raises(SchemaMismatch, match=r"is not TLC.s file of zones: none of its columns") as refused:
        read_zones(file(b"someone:x:0:0,hunter2\n1,2\n"))
    assert "hunter2" not in str(refused.value)


def test_errors_shorten_long_names_and_long_lists() -> None:
    names = ["LocationID", "\x1b[31m" + "x" * 500, *(f"name{n}" for n in range(5000))]
    with pytest.raises(SchemaMismatch, match="4981 more: unknown") as refused:
        read_zones(file(",".join(names).encode() + b"\n"))
    assert len(str(refused.value)) < 2000
    assert "\x1b" not in str(refused.value)
