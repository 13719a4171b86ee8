"""Extract, transform, load: Prefect's policy (retries, caching, names, logs, artifacts, blocks) around the connectors."""
