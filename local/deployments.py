"""Write the generated parts of `deployments/`: `make generated`, or `python -m local.deployments`.

The manifests in `deployments/` are the source. The last part of a manifest, `parameter_openapi_schema`, is generated from its
flow's signature and docstring. `deployments/workers/prefect.yaml`, the same deployments for a worker, is generated from the
manifests. It is in its own folder because `prefect deployment apply deployments/*.yaml` accepts only manifests.
"""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from local.servers.stack import WORK_POOL

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deployments"
PREFECT_FILE = FOLDER / "workers" / "prefect.yaml"
_AGENTS_QUEUE = "default"
_SCHEMA = "parameter_openapi_schema"

# The field in prefect.yaml for each field of a manifest. None: handled separately below, or Prefect finds the value itself.
_FIELDS: dict[str, str | None] = {
    "name": "name",
    "description": "description",
    "version": "version",
    "tags": "tags",
    "entrypoint": "entrypoint",
    "parameters": "parameters",
    "flow_name": None,
    "work_queue_name": None,
    "schedules": None,
    "infrastructure": None,
    _SCHEMA: None,
}
_INFRASTRUCTURE_TYPE = {
    "type",
    "block_type_slug",
    "_block_type_slug",
}  # the jobs of a process work pool are always processes

_HEADER = """\
# The deployments of ../*.yaml for workers of the process work pool taxi-pool.
# prefect work-pool create taxi-pool --type process
# prefect deploy --all --prefect-file deployments/workers/prefect.yaml
# Made by `make generated` from those manifests; edit them instead.
"""


class ManifestError(Exception):
    """A manifest cannot be generated, or prefect.yaml cannot express it. The message names the deployment and the field."""


def manifests() -> list[Path]:
    """Return the paths of the manifests that `prefect deployment apply deployments/*.yaml` applies."""
    return sorted(FOLDER.glob("*.yaml"))


def flow_of(entrypoint: str) -> Flow[..., Any]:
    """Import the flow that an entrypoint names, by module (`flows.x.f`) or by file (`flows/x.py:f`)."""
    module, _, name = entrypoint.replace("/", ".").replace(".py:", ".").rpartition(".")
    flow: Flow[..., Any] = getattr(importlib.import_module(module), name)
    return flow


def with_form(text: str) -> str:
    """Return a manifest's text with a new form, generated from the flow that it names.

    Raises:
        ManifestError: The form is not the last field, so that the fields after it would be lost.
    """
    manifest = yaml.safe_load(text)
    if list(manifest)[-1] != _SCHEMA:
        raise ManifestError(
            f"deployment {manifest['name']}: {_SCHEMA} must be the last field, move {list(manifest)[-1]} above it"
        )
    schema: Any = parameter_schema(flow_of(manifest["entrypoint"]))
    form = {k: v for k, v in schema.dict().items() if v not in (None, {})}
    form["properties"] = {name: _sorted(field) for name, field in form.get("properties", {}).items()}
    head = text[: text.index(f"\n{_SCHEMA}:") + 1]
    return head + _dump({_SCHEMA: form})


def prefect_file(texts: Iterable[str]) -> str:
    """Return the text of prefect.yaml for the texts of manifests.

    Raises:
        ManifestError: prefect.yaml cannot express a field of a manifest.
    """
    document = {
        "name": "nyc-taxi-flows",
        # Prefect imports a flow that is named by module, and runs no step. Without a step it would look for a file.
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
        "deployments": [_deployment(yaml.safe_load(text)) for text in texts],
    }
    return _HEADER + _dump(document)


def _deployment(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return one manifest's entry of prefect.yaml."""
    if unknown := manifest.keys() - _FIELDS.keys():
        raise ManifestError(
            f"deployment {manifest['name']}: no place in prefect.yaml for {', '.join(sorted(unknown))}, remove that"
        )
    queue = manifest.get("work_queue_name", _AGENTS_QUEUE)
    job = {k: v for k, v in manifest.get("infrastructure", {}).items() if k not in _INFRASTRUCTURE_TYPE}
    # Write every field that Prefect would add. Otherwise `prefect deploy` in a terminal asks whether to save them.
    pool = {
        "name": WORK_POOL,
        "work_queue_name": None if queue == _AGENTS_QUEUE else queue,
        "job_variables": job,
    }
    fields = {target: manifest[field] for field, target in _FIELDS.items() if target and field in manifest}
    schedules = [_schedule(manifest["name"], entry) for entry in manifest.get("schedules", [])]
    return fields | {"schedules": schedules, "work_pool": pool, "build": None}


def _schedule(deployment: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's schedule in the format of prefect.yaml, in which Prefect ignores `day_or` and assumes true."""
    if not entry["schedule"].get("day_or", True):
        raise ManifestError(f"deployment {deployment}: prefect.yaml has no day_or: false, write the cron another way")
    return {**entry["schedule"], "active": entry.get("active", True)}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _dump(value: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return text


def main() -> int:
    """Write every file that has changed, and print its name. Return 0, or 1 after an error."""
    forms = [*manifests(), *sorted((FOLDER / "github").glob("*.yaml"))]
    try:
        made = {path: with_form(path.read_text("utf-8")) for path in forms}
        made[PREFECT_FILE] = prefect_file(made[path] for path in manifests())
    except ManifestError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for path, text in made.items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
