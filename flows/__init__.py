"""NYC taxi trips, every month, in a lake, a warehouse and a database, exactly once. To change X, open Y:

| to change                                          | open                              |
|----------------------------------------------------|-----------------------------------|
| what a run does, step by step                      | `etl_web_gcs.py`, `etl_gcs_bq.py`, `ingest_data.py` |
| retries, caching, run names, artifacts, notifications, CLI | `tasks/`                  |
| how a system is talked to                          | `connectors/{web,lake,warehouse,postgres,scratch}.py` |
| a column of a trip, its type in every store        | `tlc/schema.py`                   |
| what TLC's files of some month look like           | `tlc/eras.py`                     |
| which values convert and which are set aside       | `tlc/clean.py`                    |
| names of files, keys, partitions                   | `tlc/trips.py`                    |
| what is remembered of a loaded month               | `tlc/manifest.py`                 |

Imports go down only: flows → tasks → connectors → tlc.
"""
