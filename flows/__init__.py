"""NYC taxi trips, every month, in a lake, a warehouse and a database, exactly once. To change X, open Y:

| to change                                          | open                              |
|----------------------------------------------------|-----------------------------------|
| what a flow takes and calls | `{etl_web_gcs,etl_gcs_bq,ingest_data,load_zones,query_lake,replay_quarantine}.py` |
| which months are brought up to date, what differs  | `bring_up_to_date.py`, `catalog.py`, `tlc/catalog.py` |
| the way of one month into one store, step by step  | `tasks/bring.py`                  |
| what a month is compared with before it is fetched | `stores/origins.py`               |
| a step's retries, timeout, cache                   | `tasks/policy.py`                 |
| how months run side by side, and fail              | `tasks/months.py`                 |
| which stores there are, what each must do, and by which blocks it is opened | `stores/__init__.py`, `tasks/stores.py` |
| what a store does with a month: stage, publish, list | `stores/{lake,warehouse,database}.py` |
| the lake's copies of published files               | `stores/raw_zone.py`              |
| the taxi zones in each store                       | `stores/zones.py`, `tasks/zones.py`, `tlc/zones.py` |
| reports and pictures in the UI, progress           | `tasks/{report,picture,progress,survey}.py` |
| notifications                                      | `tasks/notify.py`                 |
| the command line                                   | `tasks/command.py`                |
| how a system is talked to                          | `connectors/{web,bucket,bigquery,postgres,scratch}.py` |
| which addresses and files a run may read           | `connectors/{guard,files}.py`, `tlc/addresses.py` |
| when a web server is asked again, and given up     | `connectors/request.py`           |
| what is checked of a transfer, and unpacked        | `connectors/{transfer,digests,encodings}.py` |
| what Postgres' COPY is sent                        | `connectors/copy_format.py`       |
| a column of a trip, its type in every store        | `tlc/schema.py`                   |
| a fact of a month: manifest and `loads` tables     | `tlc/manifest.py`                 |
| what TLC's files of some month look like           | `tlc/eras.py`                     |
| how a file's columns map to ours, or differ        | `tlc/matching.py`                 |
| the page about columns and eras                    | `tlc/dictionary.py` → `docs/schema.md` |
| which data-quality rules a month is counted by     | `tlc/quality.py`                  |
| how many trips of a file must be of its month      | `tlc/pickups.py`                  |
| how many rows a file was known to have             | `tlc/known_months.csv`, `connectors/known.py` |
| where months are published, in which formats       | `tlc/sources.py`                  |
| a file as one stream of trips, checked and counted | `tlc/stream.py`                   |
| how a file is read                                 | `tlc/{reading_csv,reading_parquet}.py`|
| which bytes are no published file at all           | `tlc/reading.py`                  |
| which bytes among rows are no trips                | `tlc/foreign.py`                  |
| how other programs spell a missing value           | `tlc/missing.py`                  |
| which Parquet disagrees with itself or asks too much | `tlc/{parquet_footer,parquet_pages,thrift}.py` |
| how reading, converting and storing overlap        | `tlc/pipeline.py`                 |
| which values convert                               | `tlc/convert.py`                  |
| which rows are set aside                           | `tlc/clean.py`                    |
| what counts as inserted, updated, removed          | `tlc/compare.py`                  |
| names of files, keys, partitions                   | `tlc/trips.py`                    |
| how the lake is asked, here and from BigQuery      | `tlc/ask.py`, `tasks/ask.py`, `connectors/ask.py` |
| what a run warns of, and from how many rows on     | `tlc/attention.py`                |
| what can be wrong, and what is tried again         | `tlc/errors.py`                   |

Imports go down only: flows → tasks → stores → connectors → tlc.
"""
