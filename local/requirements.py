"""Print the packages of `poetry.lock` with their hashes in pip's format: `python local/requirements.py main local dev`.

The installation therefore needs only Python, not Poetry, and pip checks the hash of every file.
A test compares the output with the pins of `poetry export`.
"""

import sys
import tomllib
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "poetry.lock"


def requirements(groups: set[str]) -> list[str]:
    """Return one pip requirement per locked package of `groups`, with its environment marker and hashes."""
    lines = []
    for package in tomllib.loads(LOCK.read_text(encoding="utf-8"))["package"]:
        wanted = sorted(groups & set(package["groups"]))
        if not wanted:
            continue
        markers = package.get("markers", "")
        if isinstance(markers, dict):  # one marker per group; a group without a marker needs the package everywhere
            markers = " or ".join(f"({markers[g]})" for g in wanted) if set(wanted) <= set(markers) else ""
        hashes = " ".join(f"--hash={file['hash']}" for file in package["files"])
        lines.append(f"{package['name']}=={package['version']}{' ; ' + markers if markers else ''} {hashes}")
    return lines


if __name__ == "__main__":
    print("\n".join(requirements(set(sys.argv[1:]) or {"main"})))
