"""Stand-ins for every service that the flows use. Demo, tests, bench and Compose start them.

| open | to change |
|---|---|
| `background.py` | `make up`, `make status`, `make down` |
| `stack.py` | which services there are, how they start and stop, their ports and addresses |
| `site.py` | the web site that publishes trip files and simulates network failures |
| `bigquery.py` | how bqemulator behaves like BigQuery |
| `postgres.py` | the PostgreSQL server and its cluster |
| `containers.py` | what the stand-ins of `docker/compose.yaml` need first |
"""
