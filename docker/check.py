"""Whether the compose specification's own models accept `compose.yaml`: `make docker-check` runs this in its own environment."""

import re
import sys
from pathlib import Path

import yaml
from compose_spec import PyCompose

COMPOSE = Path(__file__).with_name("compose.yaml")


def interpolated(text: str) -> str:
    """`text` with a variable's default, or `set` where it has none, as Compose puts them in before it validates."""
    return re.sub(r"(?<!\$)\$\{\w+(?::-([^}]*)|:\?[^}]*)?\}", lambda match: match[1] or "set", text)


if __name__ == "__main__":
    # Read by PyYAML before, since compose-spec knows no merge keys (<<), which Compose does.
    resolved = yaml.safe_load(interpolated(COMPOSE.read_text(encoding="utf-8")))
    project = PyCompose.from_yaml(yaml.safe_dump(resolved))
    project.to_spec()
    print(f"{COMPOSE.name}: {len(project.service_names())} services, valid")
    sys.exit(0)
