"""Damage a trip file in the ways that users have met."""

from __future__ import annotations

import gzip
import re
from collections.abc import Mapping
from typing import Literal

Damage = Literal["html", "lfs_pointer", "truncated", "conflict_markers", "excel_dates", "gzip_members"]
"""The last one makes a valid file: gzip with several members."""


def with_damage(content: bytes, ending: str, damage: Damage) -> bytes:
    """Return a trip file's bytes with a damage. Raise `ValueError` for a damage that a file of this ending cannot have."""
    if damage in _REPLACED:
        return _REPLACED[damage]
    if damage == "truncated":
        return content[: len(content) // 2]
    if ending == ".parquet" or (damage == "gzip_members" and ending != ".csv.gz"):
        raise ValueError(f"a {ending} file cannot have {damage}")
    text = gzip.decompress(content) if ending == ".csv.gz" else content
    lines = text.splitlines(keepends=True)
    middle = len(lines) // 2
    if damage == "gzip_members":
        return b"".join(gzip.compress(b"".join(part), 6, mtime=0) for part in (lines[:middle], lines[middle:]))
    if damage == "conflict_markers":
        ours = [b"<<<<<<< HEAD\r\n", lines[middle], b"=======\r\n", lines[middle], b">>>>>>> 21c0f2254e6f\r\n"]
        spoiled = b"".join([*lines[:middle], *ours, *lines[middle + 1 :]])
    else:
        spoiled = _CSV_TIME.sub(_as_excel_saves, text)
    return gzip.compress(spoiled, 6, mtime=0) if ending == ".csv.gz" else spoiled


_REPLACED: Mapping[Damage, bytes] = {
    "html": b"<!DOCTYPE html>\n<html><body><h1>503 Service Unavailable</h1></body></html>\n",
    "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 25031880\n" % (b"4d7a2146" * 8),
}
_CSV_TIME = re.compile(rb"(\d{4})-(\d\d)-(\d\d) (\d\d):(\d\d):\d\d")


def _as_excel_saves(datetime: re.Match[bytes]) -> bytes:
    """Return a time as Excel saves it: 1/2/2021 0:30, without seconds."""
    year, month, day, hour, minute = datetime.groups()
    return b"%d/%d/%s %d:%s" % (int(month), int(day), year, int(hour), minute)
