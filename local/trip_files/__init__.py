"""Generate trip files in TLC's formats, of any month and size. The same arguments give the same bytes.

| open | to change |
|---|---|
| `layouts.py` | the columns, types and formats of TLC's files by month |
| `made_up_trips.py` | the trips themselves, and TLC's quirks |
| `editions.py` | how a later edition of a month differs from the first |
| `writing.py` | how trips become CSV and Parquet files |
| `damages.py` | the ways in which a file can be damaged |
"""
