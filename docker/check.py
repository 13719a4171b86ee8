"""Validate `compose.yaml` with the models of the Compose specification. `make docker-check` runs it in its own environment."""

import re
import sys
from pathlib import Path

import yaml
from compose_spec import PyCompose

COMPOSE = Path(__file__).with_name("compose.yaml")


def interpolated(text: str) -> str:
    """Return `text` with each variable replaced by its default, or by `set`, as Compose does before it validates."""
    return re.sub(r"(?<!\$)\$\{\w+(?::-([^}]*)|:\?[^}]*)?\}", lambda match: match[1] or "set", text)


if __name__ == "__main__":
    # PyYAML resolves merge keys (<<) first: Compose supports them, and compose-spec does not.
    resolved = yaml.safe_load(interpolated(COMPOSE.read_text(encoding="utf-8")))
    project = PyCompose.from_yaml(yaml.safe_dump(resolved))
    project.to_spec()
    print(f"{COMPOSE.name}: {len(project.service_names())} services, valid")
    sys.exit(0)
