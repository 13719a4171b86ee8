"""Load every month of NYC taxi trips into a lake, a warehouse and a database, exactly once. To change X, open Y:

| to change                                          | open                              |
|----------------------------------------------------|-----------------------------------|
| a flow's parameters and steps | `{etl_web_gcs,etl_gcs_bq,ingest_data,load_zones,query_lake,replay_quarantine}.py` |
| how a month is taken out of stores, and which editions are deleted | `withdraw.py`, `prune_editions.py` |
| which months need an update   | `bring_up_to_date.py`, `tasks/behind.py` |
| how stores differ from a source | `catalog.py`, `tlc/catalog.py` |
| the steps that bring one month into one store      | `tasks/bring.py`                  |
| how a month is staged while its file still arrives | `tasks/early.py`, `connectors/growing_file.py` |
| what a month is compared with before it is fetched | `stores/origins.py`               |
| a step's retries, timeout, cache                   | `tasks/policy.py`                 |
| how several months run at once, and how they fail  | `tasks/months.py`                 |
| how years of history are loaded, and how progress is shown | `backfill.py`, `tasks/board.py` |
| how long a back-fill is expected to take | `tasks/plan.py`, `tlc/plan.py` |
| how a back-fill is spread over machines, and how dead runs are handled | `tasks/{batches,machines,dead_runs}.py` |
| the list of stores, what each must do, which blocks open it | `stores/__init__.py`, `tasks/stores.py` |
| how a store stages, publishes and lists months     | `stores/{lake,warehouse,database}.py` |
| which months the lake has or had, and which were withdrawn | `stores/manifests.py`        |
| the lake's copies of published files, earlier editions too | `stores/raw_zone.py`      |
| a machine's copy of a published file               | `stores/kept_file.py`             |
| how editions are listed, compared and deleted, and months withdrawn | `tasks/editions.py` |
| what `verify` compares and reports, and how it marks a damaged month | `verify.py`, `tasks/verify.py`, `tlc/verify.py` |
| how each store's months are verified               | `stores/verify/{findings,lake,warehouse,database}.py` |
| the taxi zones in each store                       | `stores/zones.py`, `tasks/zones.py`, `tlc/zones.py` |
| reports and pictures in the UI, progress           | `tasks/{report,picture,progress,survey}.py` |
| notifications                                      | `tasks/notify.py`                 |
| the command line                                   | `tasks/command.py`                |
| how each external system is called                 | `connectors/{web,bucket,bigquery,postgres,scratch}.py` |
| which addresses and files a run may read           | `connectors/{guard,files}.py`, `tlc/addresses.py` |
| when a web request is retried, and when it fails   | `connectors/request.py`           |
| how a transfer is checked and decompressed         | `connectors/{transfer,digests,encodings}.py` |
| the data sent to Postgres' COPY                    | `connectors/copy_format.py`       |
| a column of a trip, its type in every store        | `tlc/schema.py`                   |
| a fact about a month: manifest and `loads` tables  | `tlc/manifest.py`                 |
| the columns of TLC's files in each period          | `tlc/eras.py`                     |
| how a file's columns map to the schema, or differ  | `tlc/matching.py`                 |
| the page about columns and eras                    | `tlc/dictionary.py` → `docs/schema.md` |
| the data-quality rules                             | `tlc/quality.py`                  |
| how many trips of a file must be in its month      | `tlc/pickups.py`                  |
| the known row counts of published files            | `tlc/known_months.csv`, `connectors/known_months.py` |
| where months are published, in which formats       | `tlc/sources.py`                  |
| how a file becomes one checked, counted stream of trips | `tlc/stream.py`                   |
| how a file is read                                 | `tlc/{reading_csv,reading_parquet,gunzip}.py`|
| which bytes are not a published file at all        | `tlc/reading.py`                  |
| which bytes between rows are not trips             | `tlc/foreign.py`                  |
| how other programs spell a missing value           | `tlc/missing.py`                  |
| which Parquet files contradict themselves or need too much memory | `tlc/{parquet_footer,parquet_pages,thrift}.py` |
| how threads encode a Parquet file of the lake      | `tlc/parquet_joining.py`          |
| how reading, converting and storing overlap        | `tlc/pipeline.py`                 |
| which values can be converted                      | `tlc/convert.py`                  |
| which rows are quarantined                         | `tlc/clean.py`                    |
| what counts as inserted, updated, removed          | `tlc/compare.py`                  |
| names of files, keys, partitions                   | `tlc/trips.py`                    |
| how the lake is queried, here and from BigQuery    | `tlc/ask.py`, `tasks/ask.py`, `connectors/ask.py` |
| what a run warns about, and from how many rows on  | `tlc/attention.py`                |
| the errors, what to do, and which of them are retried | `tlc/errors.py` → `docs/operations.md` |

Imports go down only: flows → tasks → stores → connectors → tlc.
"""

import atexit
import gc
import os
import sys

if sys.platform == "linux":
    # Read when Arrow is loaded. Its default allocator keeps more freed memory: about 70 MB more at the peak of a month.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")


@atexit.register
def _spare_the_last_collections() -> None:
    """Freeze all objects. At its end, Python would examine every object of Prefect, which takes a second."""
    if "duckdb" not in sys.modules:  # DuckDB prints what is left of its objects
        gc.freeze()
