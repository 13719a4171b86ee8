#!/usr/bin/env bash
# Build the images nyc-taxi-flows:agent and nyc-taxi-flows:stand-ins with Docker, or with buildah if no Docker engine answers.
# Arguments are passed to the build:  docker/build.sh --build-arg BASE=python:3.11.14-slim-bookworm@sha256:…
set -euo pipefail
cd "$(dirname "$0")/.."

if docker info >/dev/null 2>&1; then
    build=(docker build)
elif command -v buildah >/dev/null; then
    read -ra options <<<"${BUILDAH_OPTIONS:-}"
    build=(buildah "${options[@]}" bud --format docker) # the OCI format has no HEALTHCHECK
else
    echo 'Error: neither a Docker engine nor buildah: start Docker, or apt-get install buildah' >&2
    exit 1
fi

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
for target in agent stand-ins; do
    "${build[@]}" -f docker/Dockerfile --target "$target" -t "nyc-taxi-flows:$target" \
        --build-arg "VERSION=$version" --build-arg "REVISION=$revision" "$@" .
done
