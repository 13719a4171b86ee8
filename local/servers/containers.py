"""Create the bucket and the key for the stand-ins of `docker/compose.yaml`: `python -m local.servers.containers …`."""

import argparse
import sys
from pathlib import Path

from local.servers.stack import make_bucket, make_key


def main() -> int:
    """Create both. Leave an existing bucket or key as it is."""
    parser = argparse.ArgumentParser(
        prog="python -m local.servers.containers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--lake", required=True, help="address of fake-gcs-server")
    parser.add_argument("--token-uri", required=True, help="address from which the key gets tokens")
    parser.add_argument("--key", required=True, type=Path, help="file for the service account's key")
    options = parser.parse_args()
    make_bucket(options.lake)
    make_key(options.key, options.token_uri)
    return 0


if __name__ == "__main__":
    sys.exit(main())
