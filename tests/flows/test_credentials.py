"""Wrong Google credentials fail a run at its first attempt. The error names the block and the remedy and quotes no secret."""

import json
import os
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from google.cloud import bigquery
from prefect import Flow
from prefect_gcp import GcpCredentials
from prefect_gcp.cloud_storage import GcsBucket

from flows.etl_gcs_bq import etl_gcs_bq
from flows.etl_web_gcs import etl_web_gcs
from flows.tlc.errors import MisconfiguredBlock
from flows.tlc.trips import TripMonth
from tests.flows.conftest import Runs, lake_of, warehouse_of
from tests.loopback import Loopback
from tests.stores import Stores
from tests.strict_lake import StrictLake

CANARY = "canary-30521884"


class Issuer(Loopback):
    """A token endpoint that refuses every key, as Google's does for a deleted or disabled key."""

    def __init__(self, status: int) -> None:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                asked.append(self.path)
                body = json.dumps({"error": "invalid_grant", "error_description": "account not found"}).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Log nothing."""

        self.asked = asked
        super().__init__(Handler)

    def credentials(self) -> GcpCredentials:
        """Return credentials of an account that this endpoint refuses."""
        key = json.loads(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text("utf-8"))
        about = {"private_key_id": CANARY, "token_uri": f"{self.url}/token"}
        return GcpCredentials(service_account_info=key | about)


@pytest.fixture(params=[400, 401, 403])
def issuer(request: pytest.FixtureRequest) -> Iterator[Issuer]:
    with Issuer(request.param) as made:
        yield made


def refused(runs: Runs, flow: Flow[..., Any], month: TripMonth, **parameters: Any) -> str:
    """Run a flow that must fail at the first attempt of its task. Return the error's text."""
    state = runs.of(flow, month, **parameters)
    error = state.result(raise_on_failure=False)
    assert isinstance(error, MisconfiguredBlock), repr(error)
    assert all(run.run_count == 1 for run in runs.task_runs(state))
    text = str(error)
    assert all(secret not in text for secret in (CANARY, "PRIVATE KEY"))
    return text


@pytest.fixture
def without_a_key(ours: Stores) -> str:
    """Save a bucket block without a key, which means the credentials of the machine. Return its name."""
    GcsBucket(bucket=ours.bucket, bucket_folder="data", gcp_credentials=GcpCredentials()).save("no-key", overwrite=True)
    return "no-key"


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("{folder}/nowhere.json", "there is no such file on this machine; correct the path"),
        ("~/keys/nowhere.json", "there is no such file on this machine; correct the path"),
        ("~nobody-here/key.json", "there is no such user, or the user has no home; correct the path"),
        ("{folder}", "that is a folder; correct the path"),
    ],
)
def test_the_error_for_an_unusable_key_path_names_it(
    path: str, wrong: str, without_a_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = path.format(folder=tmp_path)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
    with pytest.raises(MisconfiguredBlock) as error:
        lake_of(without_a_key)
    assert f"GOOGLE_APPLICATION_CREDENTIALS names '{path}', but {wrong}" in str(error.value)


def test_the_error_for_a_file_that_is_not_a_key_names_it_without_quoting_it(
    without_a_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text(json.dumps({"type": "service_account", "private_key": CANARY}), "utf-8")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(MisconfiguredBlock, match=r"key\.json', which is not a usable key") as error:
        lake_of(without_a_key)
    assert CANARY not in str(error.value)


@pytest.mark.parametrize("spelled", ["~/key.json", " ~/key.json\n"])
def test_a_tilde_in_the_key_path_means_the_users_home(
    spelled: str, without_a_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text("utf-8")
    (tmp_path / "key.json").write_text(key, "utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", spelled)
    lake_of(without_a_key).check()


@pytest.mark.parametrize("kind", ["gcs-bucket", "gcp-credentials"])
def test_the_error_for_a_key_path_in_a_block_recommends_the_json(kind: str, ours: Stores, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.write_text(Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"]).read_text("utf-8"), "utf-8")
    credentials = GcpCredentials(service_account_file=str(file))
    credentials.save("by-path", overwrite=True)
    GcsBucket(bucket=ours.bucket, bucket_folder="data", gcp_credentials=credentials).save("by-path", overwrite=True)
    file.unlink()
    with pytest.raises(MisconfiguredBlock) as error:
        lake_of("by-path") if kind == "gcs-bucket" else warehouse_of("by-path", "any")
    assert (
        f"block {kind}/by-path: service_account_file names '{file}', but there is no such file on this machine"
        in str(error.value)
    )
    assert "put the service account's JSON itself into the block" in str(error.value)


def test_the_error_for_an_unknown_account_names_the_bucket(
    issuer: Issuer, month: TripMonth, ours: Stores, runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    GcsBucket(bucket=ours.bucket, bucket_folder="data", gcp_credentials=issuer.credentials()).save(
        "no-account", overwrite=True
    )
    text = refused(runs, etl_web_gcs, month, block_name="no-account")
    assert f"bucket '{ours.bucket}' cannot be read with the block's credentials (RefreshError" in text
    assert "Storage Object Admin on it, or correct the credentials" in text
    assert len(issuer.asked) < 4
    assert ours.objects_of(month) == {}
    output = capfd.readouterr()
    assert CANARY not in output.out + output.err


def test_the_error_for_an_unknown_account_names_the_dataset(
    issuer: Issuer, month: TripMonth, ours: Stores, runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    runs.lake_by_hand(month)
    issuer.credentials().save("no-account", overwrite=True)
    text = refused(runs, etl_gcs_bq, month, credentials_block="no-account", dataset="never_made")
    assert "BigQuery dataset taxi-local.never_made cannot be used with the block's credentials (RefreshError)" in text
    assert "BigQuery Data Editor and Job User, or correct the credentials" in text
    assert len(issuer.asked) < 4
    assert "never_made" not in [dataset.dataset_id for dataset in bigquery.Client().list_datasets()]
    output = capfd.readouterr()
    assert CANARY not in output.out + output.err


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    ("methods", "doing"), [(("GET",), "read"), (("POST", "PUT"), "written")], ids=["read", "write"]
)
def test_the_error_for_a_bucket_without_access_names_the_missing_role(
    methods: tuple[str, ...],
    doing: str,
    status: int,
    month: TripMonth,
    ours: Stores,
    runs: Runs,
    strict_lake: StrictLake,
) -> None:
    asked: list[str] = []

    def meddle(method: str, path: str) -> int | None:
        if method not in methods:
            return None
        asked.append(path)
        return status

    strict_lake.meddle = meddle
    # Run without Prefect, which stores its results in the same bucket.
    with pytest.raises(MisconfiguredBlock, match=f"{status}") as raised:
        runs.lake_by_hand(month)
    assert f"bucket '{ours.bucket}' cannot be {doing} with the block's credentials" in str(raised.value)
    assert "give the service account Storage Object Admin on it, or correct the credentials" in str(raised.value)
    assert len(asked) < 10
    strict_lake.meddle = lambda method, path: None
    assert ours.objects_of(month) == {}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("via", ["load_job", "dataframe"])
def test_the_error_for_a_dataset_without_access_names_the_missing_roles(
    via: str, status: int, month: TripMonth, ours: Stores, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.lake_by_hand(month)
    asked: list[str] = []

    def meddle(method: str, path: str) -> int:
        asked.append(path)
        return status

    with StrictLake(os.environ["BIGQUERY_EMULATOR_HOST"], meddle) as strict, monkeypatch.context() as patch:
        patch.setenv("BIGQUERY_EMULATOR_HOST", strict.url)
        text = refused(runs, etl_gcs_bq, month, via=via, dataset="never_made")
    assert "BigQuery dataset taxi-local.never_made cannot be used with the block's credentials" in text
    assert "as asked for" in text
    assert "give the service account BigQuery Data Editor and Job User, or correct the credentials" in text
    assert len(asked) < 6
    assert "never_made" not in [dataset.dataset_id for dataset in bigquery.Client().list_datasets()]
