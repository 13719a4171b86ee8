"""Tools for one machine: stand-ins, trip files, demo and installation. The product never imports this package.

| open | to change |
|---|---|
| `servers/` | the stand-ins for every service that the flows use, and the program that starts them |
| `trip_files/` | the generator of made-up trip files |
| `demo.py` | `make demo` |
| `catalogue.py` | `make catalogue`: a back-fill of every month, killed on the way |
| `reconciliation.py` | how a drill compares files with the three stores |
| `install.py`, `requirements.py` | `make install` |
| `deployments.py` | the generated parts of `deployments/` |
| `screenshots.py` | `make screenshots` |
"""
