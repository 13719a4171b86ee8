"""Prefect Cloud needs only another PREFECT_API_URL and a PREFECT_API_KEY. Without the key, each program reports the cause.

A proxy in front of a real server replaces Prefect Cloud and refuses requests without the key. In the role of a new workspace it
also refuses to create agent pools and infrastructure blocks, as Cloud does since September 2024 (release notes of 2.16.4).
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
import yaml
from prefect.settings import PREFECT_API_KEY, PREFECT_API_URL, temporary_settings

from blocks.notify import main as attach
from blocks.register import register
from local.servers.stack import WORK_POOL, Stack
from tests.command_line import ended, prefect, start_programs

ROOT = Path(__file__).resolve().parent.parent
KEY = "pnu_canary3Jd"
QUEUE = "of-the-cloud"

pytestmark = pytest.mark.operations


# The types of infrastructure blocks in Prefect 2 and its collections.
INFRASTRUCTURE = {
    "process", "docker-container", "kubernetes-job", "ecs-task", "cloud-run-job", "vertex-ai-custom-training-job",
    "azure-container-instance-job",
}  # fmt: skip


class Proxy(BaseHTTPRequestHandler):
    """Forwards requests that have the key. As in Prefect Cloud, there are no notification policies."""

    protocol_version = "HTTP/1.1"
    upstream: httpx.Client
    url: str
    refused: int
    passed: int
    is_new: bool
    not_made: list[str]

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        cls = type(self)
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            cls.refused += 1
            self.answer(httpx.Response(401, json={"detail": "Invalid authentication credentials"}))
        elif "/flow_run_notification_policies" in self.path:
            self.answer(httpx.Response(404, json={"detail": "Not Found"}))
        elif self.is_new and self.command == "POST" and (kind := self.of_agents(body)):
            cls.not_made.append(kind)
            self.answer(httpx.Response(403, json={"detail": f"{kind} can no longer be created"}))
        else:
            cls.passed += 1
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization", "connection")}
            self.answer(self.upstream.request(self.command, self.path, content=body, headers=kept))

    def of_agents(self, body: bytes) -> str | None:
        """Return the kind of object that the request would create if only agents need it, otherwise None."""
        folder = self.path.removeprefix("/api/").strip("/")
        if folder == "work_queues":
            return "queue outside a pool"
        if folder == "work_pools" and json.loads(body)["type"] == "prefect-agent":
            return "agent pool"
        if folder == "block_documents":
            of_type = self.upstream.get(f"/api/block_types/{json.loads(body)['block_type_id']}")
            return "infrastructure block" if of_type.raise_for_status().json()["slug"] in INFRASTRUCTURE else None
        return None

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = pass_on  # noqa: N815

    def answer(self, response: httpx.Response) -> None:
        self.send_response(response.status_code)
        self.send_header("Content-Type", response.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(response.content)))
        self.end_headers()
        self.wfile.write(response.content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def cloud(server: Stack) -> Iterator[type[Proxy]]:
    with httpx.Client(base_url=server.env["PREFECT_UI_URL"], trust_env=False, timeout=60) as upstream:
        proxy = type("Proxy", (Proxy,), {"upstream": upstream, "refused": 0, "passed": 0, "is_new": False})
        gate = ThreadingHTTPServer(("127.0.0.1", 0), proxy)
        gate.daemon_threads = True
        gate.block_on_close = False
        proxy.url = f"http://127.0.0.1:{gate.server_port}/api"
        thread = Thread(target=gate.serve_forever)
        thread.start()
        yield proxy
        gate.shutdown()
        thread.join()
        gate.server_close()


@pytest.fixture
def workspace(cloud: type[Proxy]) -> Iterator[type[Proxy]]:
    """Make `cloud` behave as a workspace that was created after September 2024."""
    cloud.upstream.delete(f"/api/work_pools/{WORK_POOL}")
    cloud.is_new, cloud.not_made, cloud.refused = True, [], 0
    with temporary_settings({PREFECT_API_URL: cloud.url, PREFECT_API_KEY: KEY}):
        yield cloud
    cloud.is_new = False
    cloud.upstream.delete(f"/api/work_pools/{WORK_POOL}")


def settings(stack: Stack, cloud: type[Proxy], tmp_path: Path, key: str | None) -> dict[str, str]:
    """Return the environment of a Prefect Cloud user, with an empty Prefect home."""
    env = stack.environment() | {"PREFECT_API_URL": cloud.url, "PREFECT_HOME": str(tmp_path / "prefect")}
    del env["PREFECT_UI_URL"]
    return env | ({"PREFECT_API_KEY": key} if key else {})


def start(env: dict[str, str], *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def done(env: dict[str, str], *command: str) -> str:
    process = start(env, *command)
    out, _ = process.communicate()
    assert process.returncode == 0, out
    assert KEY not in out
    return out


PROGRAM = (sys.executable, "flows/etl_web_gcs.py", "green", "2019", "3", "--source", "mirror")


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    """Write the README's deployment with another name and with a queue that only this test's agent uses."""
    manifest = yaml.safe_load((ROOT / "deployments" / "ingest-data-deployment.yaml").read_text("utf-8"))
    manifest |= {"name": "in the cloud", "work_queue_name": QUEUE}
    (tmp_path / "cloud.yaml").write_text(yaml.safe_dump(manifest), "utf-8")
    return str(tmp_path / "cloud.yaml")


def test_blocks_deployments_an_agent_and_programs_work_with_the_key(
    server: Stack, cloud: type[Proxy], elsewhere: str, tmp_path: Path
) -> None:
    env = settings(server, cloud, tmp_path, KEY)
    cloud.refused = cloud.passed = 0
    assert "registered gcs-bucket/" in done(env, sys.executable, "-m", "blocks.register")
    programs = start_programs(
        env, "flows/etl_web_gcs.py green 2019 3 --source mirror", "flows/etl_gcs_bq.py green 2019 3"
    )
    with temporary_settings({PREFECT_API_URL: cloud.url, PREFECT_API_KEY: KEY}):
        prefect("deployment", "apply", elsewhere)
        parameters = ("-p", "color=green", "-p", "year=2019", "-p", "months=[2]", "-p", "source=mirror")
        prefect("deployment", "run", "ingest-data/in the cloud", *parameters)
    agent = done(env, "prefect", "agent", "start", "-q", QUEUE, "--run-once")
    assert "Finished in state Completed" in agent
    out, ends = ended(programs)
    assert ends == [0, 0], out
    assert KEY not in out
    assert re.findall(r"green 2019-03: loaded; .* in the (\w+)", out) == ["lake", "warehouse"]
    assert cloud.passed > 50
    assert cloud.refused == 0


def test_in_a_new_workspace_a_worker_loads_a_month_into_postgres(
    server: Stack, workspace: type[Proxy], tmp_path: Path
) -> None:
    env = settings(server, workspace, tmp_path, KEY)
    done(env, sys.executable, "-m", "blocks.register")
    prefect("work-pool", "create", WORK_POOL, "--type", "process")
    prefect("deploy", "--all", "--prefect-file", "deployments/workers/prefect.yaml")
    parameters = ("-p", "color=green", "-p", "year=2019", "-p", "months=[5]", "-p", "source=mirror")
    output = prefect("deployment", "run", "ingest-data/parametrized ny-taxi ingest", *parameters)
    done(env, "prefect", "worker", "start", "--pool", WORK_POOL, "--run-once")
    [run] = set(re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", output))
    ended_as = workspace.upstream.get(f"/api/flow_runs/{run}").raise_for_status().json()
    assert (ended_as["state_name"], ended_as["work_pool_name"]) == ("Completed", WORK_POOL)
    assert workspace.not_made == []
    assert workspace.refused == 0


def test_a_new_workspace_refuses_infrastructure_blocks_and_agent_pools(workspace: type[Proxy], elsewhere: str) -> None:
    assert "403 Forbidden" in prefect("deployment", "apply", elsewhere, code=1)
    assert "403 Forbidden" in prefect("work-pool", "create", "for-agents", "--type", "prefect-agent", code=1)
    assert workspace.not_made == ["infrastructure block", "agent pool"]


def test_a_schedule_is_set_stopped_and_resumed_with_the_key(server: Stack, cloud: type[Proxy], elsewhere: str) -> None:
    name = "ingest-data/in the cloud"

    def schedules() -> list[tuple[str, bool]]:
        found = cloud.upstream.get(f"/api/deployments/name/{name}").raise_for_status().json()["schedules"]
        return [(schedule["schedule"]["cron"], schedule["active"]) for schedule in found]

    cloud.refused = 0
    with temporary_settings({PREFECT_API_URL: cloud.url, PREFECT_API_KEY: KEY}):
        prefect("deployment", "apply", elsewhere)
        prefect("deployment", "set-schedule", name, "--cron", "0 5 1 * *", "--timezone", "America/New_York")
        assert schedules() == [("0 5 1 * *", True)]
        prefect("deployment", "pause-schedule", name)
        assert schedules() == [("0 5 1 * *", False)]
        prefect("deployment", "resume-schedule", name)
        assert schedules() == [("0 5 1 * *", True)]
        prefect("deployment", "schedule", "clear", name, "--accept-yes")
    assert schedules() == []
    assert cloud.refused == 0


@pytest.mark.parametrize("key", [None, "pnu_wrong6Ty"])
def test_without_the_right_key_each_program_reports_the_cause(
    key: str | None, server: Stack, cloud: type[Proxy], elsewhere: str, tmp_path: Path
) -> None:
    env = settings(server, cloud, tmp_path, key)
    ours = [start(env, *PROGRAM), start(env, sys.executable, "-m", "blocks.register", "sqlalchemy-connector")]
    prefects = [start(env, "prefect", "agent", "start", "-q", QUEUE, "--run-once")] if key else []
    for process in ours:
        out, _ = process.communicate()
        assert process.returncode == 1, out
        assert out.splitlines()[-1].startswith(
            "error: the Prefect server of PREFECT_API_URL refuses PREFECT_API_KEY (401)"
        )
        assert str(key) not in out
    outputs = {str(process.args): process.communicate()[0] for process in prefects}
    with temporary_settings({PREFECT_API_URL: cloud.url, PREFECT_API_KEY: key}):
        outputs |= {
            " ".join(words): prefect(*words, code=1)
            for words in (("deployment", "apply", elsewhere), ("deployment", "run", "ingest-data/in the cloud"))
        }
    for command, out in outputs.items():
        assert "401 Unauthorized" in out, command
        assert "Invalid authentication credentials" in out, command


def test_attaching_policies_on_prefect_cloud_recommends_automations(
    cloud: type[Proxy], capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings({PREFECT_API_URL: cloud.url, PREFECT_API_KEY: KEY}):
        register({"NOTIFY_WEBHOOK_URL": "http://127.0.0.1:9/"}, ["custom-webhook"])
        assert attach(["failed"]) == 1
    assert "on Prefect Cloud make an automation" in capsys.readouterr().err
