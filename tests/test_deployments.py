"""Every manifest in `deployments/` agrees with the flow that it names, so that neither can drift from the other."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema

ROOT = Path(__file__).resolve().parent.parent
MANIFESTS = sorted((ROOT / "deployments").rglob("*.yaml"))


def manifest(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def flow_of(path: Path) -> Flow:
    module, _, name = manifest(path)["entrypoint"].replace("/", ".").replace(".py:", ".").rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_there_is_a_deployment_of_every_flow_a_user_runs_on_the_queue():
    named = {manifest(path)["flow_name"] for path in MANIFESTS}
    assert {"etl-parent-flow", "etl-gcs-bq-parent-flow", "ingest-data", "bring-up-to-date", "catalog"} <= named


def test_the_web_to_lake_deployment_keeps_the_name_and_parameters_that_users_have_in_scripts():
    web_gcs = manifest(ROOT / "deployments" / "web-gcs-deployment.yaml")
    assert web_gcs["name"] == "parametrized ny-taxi ETL"
    assert web_gcs["flow_name"] == "etl-parent-flow"
    assert web_gcs["parameters"] == {"color": "yellow", "months": [1, 2, 3], "year": 2021, "block_name": "ny-taxi-gcs"}
    assert web_gcs["work_queue_name"] == "default"


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
class TestManifest:
    def test_it_names_a_flow_by_its_own_name(self, path):
        assert flow_of(path).name == manifest(path)["flow_name"]

    def test_its_parameters_are_valid_for_the_flow(self, path):
        flow_of(path).validate_parameters(manifest(path)["parameters"])

    def test_its_form_is_that_of_the_flows_signature_and_docstring(self, path):
        schema = {k: v for k, v in parameter_schema(flow_of(path)).dict().items() if v not in (None, {})}
        assert manifest(path)["parameter_openapi_schema"] == schema

    def test_every_field_of_its_form_has_a_help_text(self, path):
        for name, field in manifest(path)["parameter_openapi_schema"]["properties"].items():
            assert len(field.get("description", "")) > 10, name

    def test_it_goes_to_the_queue_that_the_agent_pulls_from(self, path):
        assert manifest(path)["work_queue_name"] == "default"

    def test_it_carries_no_state_of_a_server_and_no_path_of_a_machine(self, path):
        assert set(manifest(path)) <= {
            "name", "description", "version", "tags", "flow_name", "entrypoint", "work_queue_name", "parameters",
            "infrastructure", "parameter_openapi_schema", "schedules", "storage",
        }  # fmt: skip

    def test_it_has_a_schedule_only_if_it_is_the_one_that_brings_everything_up_to_date(self, path):
        assert bool(manifest(path).get("schedules")) == (path.stem == "bring-up-to-date-deployment")


def test_everything_is_brought_up_to_date_in_the_early_morning_of_every_first_of_a_month_in_new_york():
    [scheduled] = manifest(ROOT / "deployments" / "bring-up-to-date-deployment.yaml")["schedules"]
    assert scheduled["active"] is True
    assert (scheduled["schedule"]["cron"], scheduled["schedule"]["timezone"]) == ("0 5 1 * *", "America/New_York")


def test_what_apply_takes_by_a_wildcard_needs_no_block():
    assert [path for path in MANIFESTS if "storage" in manifest(path) and path.parent.name == "deployments"] == []
