"""An agent on a machine without this repository clones the code from GitHub. A local repository replaces GitHub.

Git's setting `url.….insteadOf` maps https://github.com to the local repository, so the block and the real git run unchanged.
"""

import asyncio
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from google.cloud import storage
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks import FLOW_CODE
from blocks.environment import BadValue
from blocks.github import flow_code
from blocks.register import BLOCKS, register
from local.servers.stack import Stack
from tests.command_line import prefect

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/somebody/trips.git"
TOKEN = "github_pat_canary8Rk"
DEPLOYMENT = "etl-web-gcs/ny-taxi ETL from GitHub"
QUEUE = "machine-without-the-code"
AGENT = "import prefect.cli; prefect.cli.app()"  # the program `prefect`, in another Python

pytestmark = [
    pytest.mark.operations,
    pytest.mark.filterwarnings("ignore::prefect._internal.compatibility.deprecated.PrefectDeprecationWarning"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a bare repository with a commit of the present code."""
    folder = tmp_path_factory.mktemp("github")
    work = folder / "work"
    work.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "flows", "blocks", "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_bytes((ROOT / name).read_bytes())
    me = ["-c", "user.name=tests", "-c", "user.email=tests@example.com", "-c", "commit.gpgsign=false"]
    for command in (["init", "-qb", "main"], ["add", "."], [*me, "commit", "-qm", "code"], ["tag", "v1"]):
        subprocess.run(["git", *command], cwd=work, check=True)
    bare = folder / "somebody" / "trips.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    return bare


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a Python environment with the project's dependencies but without the project. Return its folder."""
    folder = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    # Python searches a folder that a .pth file names, but ignores the .pth files in it, such as this project's.
    (packages / "all-but-this-project.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    (folder / "empty").mkdir()
    return folder


def run_on(machine: Path, stack: Stack, git: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python on `machine` in an empty directory. `git` maps an address to the address that git uses instead."""
    (machine / "gitconfig").write_text(
        "".join(f'[url "{instead}"]\n\tinsteadOf = {address}\n' for address, instead in git.items()), "utf-8"
    )
    env = {k: v for k, v in stack.environment().items() if k != "PYTHONPATH"}
    env |= {"GIT_CONFIG_GLOBAL": str(machine / "gitconfig"), "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {"PREFECT_HOME": str(machine / "prefect"), "TMPDIR": str(machine)}
    return subprocess.run(
        [str(machine / "venv" / "bin" / "python"), *arguments],
        cwd=machine / "empty", env=env, capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip


async def ask(**parameters: Any) -> FlowRun:
    async with get_client() as client:
        found = await client.read_deployment_by_name(DEPLOYMENT)
        return await client.create_flow_run_from_deployment(found.id, parameters=parameters, work_queue_name=QUEUE)


async def ended(run: FlowRun) -> tuple[FlowRun, str]:
    """Return a flow run from the server, and its log."""
    async with get_client() as client:
        where = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        return await client.read_flow_run(run.id), "\n".join(log.message for log in await client.read_logs(where))


@pytest.fixture(scope="module")
def prepared(server: Stack) -> Iterator[Stack]:
    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        register(server.environment(), list(BLOCKS))
        yield server


def test_an_agent_without_the_code_clones_it_and_loads_a_month_into_the_lake(
    prepared: Stack, machine: Path, repository: Path
) -> None:
    to_here = {
        f"https://{who}github.com/": f"file://{repository.parent.parent}/" for who in ("", f"x-access-token:{TOKEN}@")
    }
    absent = run_on(machine, prepared, to_here, "-c", "import pandas_gbq, pyarrow; import flows")
    assert "No module named 'flows'" in absent.stderr
    register({"FLOW_CODE_REPOSITORY": REPOSITORY, "FLOW_CODE_REFERENCE": "v1", "FLOW_CODE_TOKEN": TOKEN}, ["github"])
    prefect("deployment", "apply", "deployments/github/web-gcs-deployment.yaml")
    run = asyncio.run(ask())
    agent = run_on(machine, prepared, to_here, "-c", AGENT, "agent", "start", "-q", QUEUE, "--run-once")
    run, log = asyncio.run(ended(run))
    assert run.state_name == "Completed", agent.stdout + agent.stderr + log
    assert run.name == "green 2020-11"
    assert "Downloading flow code from storage" in log
    assert (
        storage.Client().bucket(prepared.env["LAKE_BUCKET"]).blob("data/green/green_tripdata_2020-11.parquet").exists()
    )
    assert TOKEN not in agent.stdout + agent.stderr + log
    assert list((machine / "empty").iterdir()) == []


class Refusing(BaseHTTPRequestHandler):
    """Answers as GitHub does to a wrong token."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="GitHub"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_a_refused_token_is_reported_and_never_printed(prepared: Stack, machine: Path) -> None:
    register({"FLOW_CODE_REPOSITORY": REPOSITORY, "FLOW_CODE_TOKEN": TOKEN}, ["github"])
    prefect("deployment", "apply", "deployments/github/web-gcs-deployment.yaml")
    run = asyncio.run(ask())
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever).start()
        secret = f"x-access-token:{TOKEN}@"
        here = {f"https://{secret}github.com/": f"http://{secret}127.0.0.1:{server.server_port}/"}
        # An agent starts this program for a run.
        engine = run_on(machine, prepared, here, "-m", "prefect.engine", str(run.id))
        server.shutdown()
    run, log = asyncio.run(ended(run))
    assert run.state is not None
    assert run.state_name == "Failed"
    output = "\n".join([engine.stdout, engine.stderr, log, str(run.state.message)])
    assert "Authentication failed for 'http://127.0.0.1" in output
    assert TOKEN not in output

    async def shown() -> str:
        async with get_client() as client:
            return (await client.read_block_document_by_name(FLOW_CODE, "github", include_secrets=False)).json()

    assert TOKEN not in asyncio.run(shown())


BAD = [
    ("FLOW_CODE_REPOSITORY", f"https://{TOKEN}@github.com/a/b.git"),
    ("FLOW_CODE_REPOSITORY", f"--upload-pack={TOKEN}"),
    ("FLOW_CODE_TOKEN", f"{TOKEN}@evil.example.com/"),
    ("FLOW_CODE_REFERENCE", f"--{TOKEN}"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=range(len(BAD)))
def test_a_bad_value_is_named_and_never_quoted(name: str, value: str) -> None:
    with pytest.raises(BadValue, match=name) as raised:
        flow_code({"FLOW_CODE_REPOSITORY": REPOSITORY} | {name: value})
    assert TOKEN not in str(raised.value)
