"""Every manifest in `deployments/` agrees with its flow, and prefect.yaml with the manifests, so that none can drift."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from local.deployments import PREFECT_FILE, ManifestError, manifests, prefect_file, with_form
from local.deployments import flow_of as flow_of_entrypoint

ROOT = Path(__file__).resolve().parent.parent
MANIFESTS = [*manifests(), *sorted((ROOT / "deployments" / "github").glob("*.yaml"))]


def manifest(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def flow_of(path: Path) -> Flow:
    return flow_of_entrypoint(manifest(path)["entrypoint"])


def test_every_flow_that_users_run_has_a_deployment():
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

    def test_its_form_comes_from_the_flows_signature_and_docstring(self, path):
        schema = {k: v for k, v in parameter_schema(flow_of(path)).dict().items() if v not in (None, {})}
        assert manifest(path)["parameter_openapi_schema"] == schema, "make generated"

    def test_it_is_what_make_generated_writes(self, path):
        text = path.read_text(encoding="utf-8")
        assert with_form(text) == text
        emptied = text[: text.index("\nparameter_openapi_schema:")] + "\nparameter_openapi_schema: {}\n"
        assert with_form(emptied) == text

    def test_every_field_of_its_form_has_a_help_text(self, path):
        for name, field in manifest(path)["parameter_openapi_schema"]["properties"].items():
            assert len(field.get("description", "")) > 10, name

    def test_it_goes_to_the_queue_that_the_agent_pulls_from(self, path):
        assert manifest(path)["work_queue_name"] == "default"

    def test_it_contains_no_server_state_and_no_local_path(self, path):
        assert set(manifest(path)) <= {
            "name", "description", "version", "tags", "flow_name", "entrypoint", "work_queue_name", "parameters",
            "infrastructure", "parameter_openapi_schema", "schedules", "storage",
        }  # fmt: skip

    def test_only_the_deployments_that_update_or_verify_have_a_schedule(self, path):
        scheduled = path.stem in ("bring-up-to-date-deployment", "verify-deployment")
        assert bool(manifest(path).get("schedules")) == scheduled


def test_the_update_is_scheduled_at_five_on_the_first_of_each_month_in_new_york():
    [scheduled] = manifest(ROOT / "deployments" / "bring-up-to-date-deployment.yaml")["schedules"]
    assert scheduled["active"] is True
    assert (scheduled["schedule"]["cron"], scheduled["schedule"]["timezone"]) == ("0 5 1 * *", "America/New_York")


def test_the_nightly_verification_is_paused_until_an_operator_resumes_it():
    [scheduled] = manifest(ROOT / "deployments" / "verify-deployment.yaml")["schedules"]
    assert scheduled["active"] is False  # an installation may lack one of the three stores
    assert (scheduled["schedule"]["cron"], scheduled["schedule"]["timezone"]) == ("30 3 * * *", "America/New_York")


def test_applying_all_manifests_needs_no_block():
    assert [path for path in MANIFESTS if "storage" in manifest(path) and path.parent.name == "deployments"] == []


class TestPrefectFile:
    """`deployments/workers/prefect.yaml`, from which `prefect deploy` makes the same deployments for a worker."""

    def test_it_is_what_make_generated_writes(self):
        texts = [path.read_text(encoding="utf-8") for path in manifests()]
        assert PREFECT_FILE.read_text(encoding="utf-8") == prefect_file(texts), "make generated"

    def test_it_has_every_deployment_that_apply_makes_with_the_same_names_parameters_tags_and_schedules(self):
        entries = manifest(PREFECT_FILE)["deployments"]
        assert [entry["name"] for entry in entries] == [manifest(path)["name"] for path in manifests()]
        for path, entry in zip(manifests(), entries, strict=True):
            ours = manifest(path)
            for field in ("description", "version", "tags", "entrypoint", "parameters"):
                assert entry[field] == ours[field]
            schedules = [{k: v for k, v in schedule.items() if k != "active"} for schedule in entry["schedules"]]
            assert schedules == [schedule["schedule"] for schedule in ours.get("schedules", [])]
            assert [s["active"] for s in entry["schedules"]] == [s["active"] for s in ours.get("schedules", [])]

    def test_every_deployment_goes_to_the_process_work_pool(self):
        entries = manifest(PREFECT_FILE)["deployments"]
        assert {entry["work_pool"]["name"] for entry in entries} == {"taxi-pool"}

    def test_it_names_flows_by_module_and_contains_no_local_path(self):
        document = manifest(PREFECT_FILE)
        assert [entry["entrypoint"] for entry in document["deployments"] if ":" in entry["entrypoint"]] == []
        assert document["pull"] == [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]

    def test_the_wildcard_of_apply_does_not_match_it(self):
        assert PREFECT_FILE not in (ROOT / "deployments").glob("*.yaml")


EDITED = {
    "name": "mine",
    "flow_name": "catalog",
    "entrypoint": "flows.catalog.catalog",
    "work_queue_name": "default",
    "infrastructure": {"type": "process"},
}


def entry_of(**edited: Any) -> dict[str, Any]:
    [entry] = yaml.safe_load(prefect_file([yaml.safe_dump(EDITED | edited)]))["deployments"]
    return entry


def test_a_manifests_queue_becomes_a_queue_of_the_work_pool():
    assert entry_of()["work_pool"] == {"name": "taxi-pool", "work_queue_name": None, "job_variables": {}}
    assert entry_of(work_queue_name="urgent")["work_pool"]["work_queue_name"] == "urgent"


def test_infrastructure_settings_become_job_variables():
    process = {"type": "process", "_block_type_slug": "process", "env": {"TZ": "UTC"}}
    assert entry_of(infrastructure=process)["work_pool"]["job_variables"] == {"env": {"TZ": "UTC"}}


def test_an_interval_stays_an_interval():
    every = {"interval": 86400.0, "anchor_date": "2021-01-01T00:00:00+00:00", "timezone": "UTC"}
    assert entry_of(schedules=[{"schedule": every}])["schedules"] == [every | {"active": True}]


@pytest.mark.parametrize(
    ("edited", "named"),
    [
        ({"storage": {"name": "flow-code"}}, "deployment mine: no place in prefect.yaml for storage"),
        ({"schedules": [{"schedule": {"cron": "0 5 1 * 1", "day_or": False}}]}, "deployment mine: .* no day_or: false"),
    ],
)
def test_what_prefect_yaml_cannot_express_is_refused(edited, named):
    with pytest.raises(ManifestError, match=named):
        entry_of(**edited)


def test_a_field_after_the_form_is_refused_because_it_would_be_lost():
    text = yaml.safe_dump(EDITED | {"parameter_openapi_schema": {}}, sort_keys=False) + "tags: [mine]\n"
    with pytest.raises(ManifestError, match="must be the last field, move tags above it"):
        with_form(text)
