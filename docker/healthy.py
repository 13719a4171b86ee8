"""Health check of a container: `healthy.py` for an agent or worker, `healthy.py URL` for a web server.

An agent or worker is healthy if the Prefect API answers and the process has polled within the last 90 seconds. That is six
polls, and longer than one pause after a failure. The exit status is 0 or 1, with one line that says why. The check runs often,
so it imports only the standard library.
"""

import os
import sys
import tempfile
import time
import urllib.request
from http.client import HTTPException, InvalidURL
from pathlib import Path
from urllib.error import HTTPError, URLError

MARK = Path(tempfile.gettempdir(), "polled")
LIMIT_SECONDS = 90


def ask(url: str, key: str | None = None) -> None:
    """Raise OSError, ValueError or HTTPException unless `url` answers a GET with a success status."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    urllib.request.urlopen(request, timeout=5).close()  # noqa: S310


def main(arguments: list[str]) -> int:
    """Check once and print the result. Return the exit status."""
    url = arguments[0] if arguments else f"{os.environ.get('PREFECT_API_URL', '')}/health"
    name = url if arguments else "the Prefect server of PREFECT_API_URL"  # that address may contain a secret
    try:
        ask(url, None if arguments else os.environ.get("PREFECT_API_KEY"))
    except (OSError, ValueError, HTTPException) as error:
        # The texts about a malformed address quote it. That about an unknown scheme is the only reason that is no error itself.
        unknown = (
            isinstance(error, URLError) and not isinstance(error, HTTPError) and not isinstance(error.reason, OSError)
        )
        malformed = unknown or isinstance(error, ValueError | InvalidURL)
        why = error if isinstance(error, OSError) else type(error).__name__
        print(f"{name} does not answer: {'its address is malformed' if malformed else why}")
        return 1
    if arguments:
        print(f"{name} answers")
        return 0
    try:
        seconds = time.time() - MARK.stat().st_mtime
    except FileNotFoundError:
        print("the server answers, but was never asked for work")
        return 1
    print(f"the server answers; last asked for work {seconds:.0f} s ago")
    return 0 if seconds <= LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
