"""Measure this project against what a user would choose instead, in one run: `make bench`, `make bench QUICK=1`.

| to change                                   | open            |
|---------------------------------------------|-----------------|
| what is measured, on which files, how often | `contest.py`    |
| how the usual pandas script does it         | `seed.py`       |
| how plain tools do it                       | `plain.py`      |
| how other libraries do it                   | `peers.py`      |
| how a process is measured                   | `process.py`    |
| how files are made and rows are compared    | `files.py`      |
| what `results.json` and the terminal show   | `__main__.py`   |
| the tables and picture of `docs/speed.md`   | `page.py`       |

Every run is a separate process. `wall_s` of a Prefect flow is the lifetime of its process. `net_s` is `wall_s` minus that of an
empty flow with the same number of flows and tasks and the same imports, measured in the same run. Contenders without Prefect
measure their own time after their imports, which favours them; their `net_s` is their `wall_s`. The memory is a process's peak,
including imports. A run that stores wrong rows stops the bench.
"""

SMALL_MONTH = 300
"""The rows of each month in the work `small_months`."""
