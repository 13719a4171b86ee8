"""This project against what a user would pick instead, side by side in one run: `make bench`, `make bench QUICK=1`.

| to change                                   | open            |
|---------------------------------------------|-----------------|
| what is measured, on which files, how often | `contest.py`    |
| how a user would do it without this project | `contenders.py` |
| how a process is measured                   | `process.py`    |
| how files are made and rows are counted     | `files.py`      |
| what `results.json` and the table say       | `__main__.py`   |

Every run is a process of its own. `wall_s` of a Prefect flow is the life of its process, and `net_s` that less an empty flow of
as many flows and tasks with the same imports, measured in the same run. Contenders without Prefect time themselves after
their imports, which favours them; their `net_s` is their `wall_s`. Memory is a process's peak, imports and all.
A run that did not put the right number of rows into the store stops the bench.
"""
