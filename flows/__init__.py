"""NYC taxi trips, every month, in a lake, a warehouse and a database, exactly once. To change X, open Y:

| to change                                          | open                              |
|----------------------------------------------------|-----------------------------------|
| what a run does, step by step                      | `{etl_web_gcs,etl_gcs_bq,ingest_data,load_zones,query_lake}.py` |
| how quarantined rows are tried again               | `replay_quarantine.py`            |
| which months are brought up to date, what differs  | `bring_up_to_date.py`, `catalog.py`, `tlc/catalog.py` |
| a step's name, log, retries, cache                 | `tasks/{extract,transform,load,zones,survey,ask}.py`, `tasks/policy.py` |
| how months run side by side, and fail              | `tasks/months.py`                 |
| which block is which store                         | `tasks/stores.py`                 |
| reports and pictures in the UI, progress           | `tasks/{report,picture,progress}.py` |
| notifications                                      | `tasks/notify.py`                 |
| the command line                                   | `tasks/command.py`                |
| how a system is talked to                          | `connectors/{web,lake,warehouse,postgres,scratch}.py` |
| which addresses and files a run may read           | `connectors/{guard,files}.py`, `tlc/addresses.py` |
| when a web server is asked again, and given up     | `connectors/request.py`           |
| what is checked of a transfer, and unpacked        | `connectors/{transfer,digests,encodings}.py` |
| what Postgres' COPY is sent                        | `connectors/copy_format.py`       |
| a column of a trip, its type in every store        | `tlc/schema.py`                   |
| what TLC's files of some month look like           | `tlc/eras.py`                     |
| the page that tells all of that to a reader        | `tlc/dictionary.py` → `docs/schema.md` |
| which data-quality rules a month is counted by     | `tlc/quality.py`                  |
| how many trips of a file must be of its month     | `tlc/pickups.py`                  |
| how many rows a file was known to have             | `tlc/known_months.csv`, `connectors/known.py` |
| where months are published, in which formats       | `tlc/sources.py`                  |
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
| the taxi zones, their columns                      | `tlc/zones.py`                    |
| how the lake is asked, here and from BigQuery      | `tlc/ask.py`, `connectors/ask.py` |
| what a run warns of, and from how many rows on     | `tlc/attention.py`                |
| what is remembered of a loaded month               | `tlc/manifest.py`                 |
| what can be wrong, and is not tried again          | `tlc/errors.py`                   |

Imports go down only: flows → tasks → connectors → tlc.
"""
