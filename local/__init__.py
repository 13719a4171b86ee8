"""What this project needs on one machine, besides its product. Production never imports this.

| open | to change |
|---|---|
| `servers/` | the stand-ins for every service that the flows use, and the program that starts them |
| `trip_files/` | the generator of made-up trip files |
| `demo.py` | `make demo` |
| `install.py`, `requirements.py` | `make install` |
| `deployments.py` | the generated parts of `deployments/` |
| `screenshots.py` | `make screenshots` |
"""
