"""Print the software bill of materials of what `poetry.lock` installs, as CycloneDX 1.6: `python local/sbom.py main local`.

It uses only the lock: the same lock gives the same bytes, and no network is needed.
Format: https://cyclonedx.org/docs/1.6/json/
"""

import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def _purl(name: str, version: str) -> str:
    """Return a package's URL, which is also its id: https://github.com/package-url/purl-spec."""
    return f"pkg:pypi/{_plain(name)}@{version}"


def _plain(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill(groups: set[str]) -> dict[str, Any]:
    """Return the bill of the packages of `groups`: each package with its version, its files' hashes, and its dependencies."""
    lock = tomllib.loads((ROOT / "poetry.lock").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    packages = [package for package in lock["package"] if groups & set(package["groups"])]
    versions: dict[str, list[str]] = {}  # a package may be locked twice, for different versions of Python
    for package in packages:
        versions.setdefault(_plain(package["name"]), []).append(_purl(package["name"], package["version"]))
    direct = [_plain(re.match(r"[\w.-]+", needed)[0]) for needed in project["dependencies"]]  # type: ignore[index]
    main = _purl(project["name"], project["version"])

    def refs(names: list[str]) -> list[str]:
        return sorted({ref for name in names for ref in versions.get(_plain(name), [])})

    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": main, "name": project["name"], "version": project["version"],
                "purl": main, "licenses": [{"license": {"id": project["license"]}}],
            },
        },
        "components": [_component(package) for package in packages],
        "dependencies": [
            {"ref": main, "dependsOn": refs(direct)},
            *(
                {"ref": _purl(package["name"], package["version"]), "dependsOn": refs([*package.get("dependencies", {})])}
                for package in packages
            ),
        ],
    }  # fmt: skip


def _component(package: dict[str, Any]) -> dict[str, Any]:
    purl = _purl(package["name"], package["version"])
    return {
        "type": "library",
        "bom-ref": purl,
        "name": package["name"],
        "version": package["version"],
        "purl": purl,
        "externalReferences": [
            {
                "type": "distribution",
                "url": file["file"],
                "hashes": [{"alg": "SHA-256", "content": file["hash"].removeprefix("sha256:")}],
            }
            for file in package["files"]
        ],
    }


if __name__ == "__main__":
    print(json.dumps(bill(set(sys.argv[1:]) or {"main"}), indent=1))
