"""With another PREFECT_API_URL and a PREFECT_API_KEY, and nothing else changed, everything works; without the key it says so.

A proxy in front of a real server stands in for Prefect Cloud: it lets nobody in without the key.
"""

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
from local.stack import Stack
from tests.command_line import ended, prefect, start_programs

ROOT = Path(__file__).resolve().parent.parent
KEY = "pnu_canary3Jd"
QUEUE = "of-the-cloud"

pytestmark = pytest.mark.operations


class Proxy(BaseHTTPRequestHandler):
    """Passes on what comes with the key, as Prefect Cloud does; policies are not among what that has."""

    protocol_version = "HTTP/1.1"
    upstream: httpx.Client
    url: str
    refused: int
    passed: int

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        cls = type(self)
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            cls.refused += 1
            self.answer(httpx.Response(401, json={"detail": "Invalid authentication credentials"}))
        elif "/flow_run_notification_policies" in self.path:
            self.answer(httpx.Response(404, json={"detail": "Not Found"}))
        else:
            cls.passed += 1
            kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization", "connection")}
            self.answer(self.upstream.request(self.command, self.path, content=body, headers=kept))

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = pass_on  # noqa: N815

    def answer(self, response: httpx.Response) -> None:
        self.send_response(response.status_code)
        self.send_header("Content-Type", response.headers.get("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(response.content)))
        self.end_headers()
        self.wfile.write(response.content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def cloud(server: Stack) -> Iterator[type[Proxy]]:
    with httpx.Client(base_url=server.env["PREFECT_UI_URL"], trust_env=False, timeout=60) as upstream:
        proxy = type("Proxy", (Proxy,), {"upstream": upstream, "refused": 0, "passed": 0})
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


def settings(stack: Stack, cloud: type[Proxy], tmp_path: Path, key: str | None) -> dict[str, str]:
    """What a user of Prefect Cloud has set; a home of its own, in which nothing else is."""
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
    """The deployment of README under another name, on a queue that only the agent of this test pulls from."""
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
def test_without_the_key_each_says_what_is_wrong(
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
    told = {str(process.args): process.communicate()[0] for process in prefects}
    with temporary_settings({PREFECT_API_URL: cloud.url, PREFECT_API_KEY: key}):
        told |= {
            " ".join(words): prefect(*words, code=1)
            for words in (("deployment", "apply", elsewhere), ("deployment", "run", "ingest-data/in the cloud"))
        }
    for command, out in told.items():
        assert "401 Unauthorized" in out, command
        assert "Invalid authentication credentials" in out, command


def test_attaching_policies_says_that_prefect_cloud_has_automations_instead(
    cloud: type[Proxy], capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings({PREFECT_API_URL: cloud.url, PREFECT_API_KEY: KEY}):
        register({"NOTIFY_WEBHOOK_URL": "http://127.0.0.1:9/"}, ["custom-webhook"])
        assert attach(["failed"]) == 1
    assert "on Prefect Cloud make an automation" in capsys.readouterr().err
