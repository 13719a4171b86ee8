"""`python -m local.containers …`: what the stand-ins of `docker/compose.yaml` need once: a bucket, a key that opens nothing."""

import argparse
import sys
from pathlib import Path

from local.stack import make_bucket, make_key


def main() -> int:
    """Make both, as the arguments say; what is there stays."""
    parser = argparse.ArgumentParser(prog="python -m local.containers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lake", required=True, help="address of fake-gcs-server")
    parser.add_argument("--token-uri", required=True, help="where the key's tokens come from")
    parser.add_argument("--key", required=True, type=Path, help="file for the service account's key")
    asked = parser.parse_args()
    make_bucket(asked.lake)
    make_key(asked.key, asked.token_uri)
    return 0


if __name__ == "__main__":
    sys.exit(main())
