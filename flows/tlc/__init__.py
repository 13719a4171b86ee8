"""The domain: trip months, schema eras, cleaning, manifests. Pure: nothing here opens a file, a socket or a Prefect run."""
