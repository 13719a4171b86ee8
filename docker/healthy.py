"""A container's health check: `healthy.py` of an agent or worker, `healthy.py URL` of a web server.

An agent or worker is healthy if the Prefect API answers and it has itself polled within the last 90 seconds: six polls, and
longer than one pause after a failure. Exit status 0 or 1 with a line that says why. Only the standard library: it runs often.
"""

import os
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

MARK = Path(tempfile.gettempdir(), "polled")
LIMIT_SECONDS = 90


def ask(url: str, key: str | None = None) -> None:
    """Raise OSError or ValueError unless `url` answers a GET with a status of success."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})  # noqa: S310
    urllib.request.urlopen(request, timeout=5).close()  # noqa: S310


def main(arguments: list[str]) -> int:
    """Check once and print what was found."""
    url = arguments[0] if arguments else f"{os.environ.get('PREFECT_API_URL', '')}/health"
    try:
        ask(url, None if arguments else os.environ.get("PREFECT_API_KEY"))
    except (OSError, ValueError) as error:
        print(f"{url} does not answer: {error}")
        return 1
    if arguments:
        print(f"{url} answers")
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
