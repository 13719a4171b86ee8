"""An agent on a machine without this repository clones the code from GitHub, for which a local repository stands in.

Git itself leads https://github.com here (`url.….insteadOf`), so that the block's own code and the real git run.
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
AGENT = "import prefect.cli; prefect.cli.app()"  # the program `prefect`, by another Python

pytestmark = [
    pytest.mark.operations,
    pytest.mark.filterwarnings("ignore::prefect._internal.compatibility.deprecated.PrefectDeprecationWarning"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This code as it stands, committed, as a bare repository."""
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
    """A Python that has everything this project needs and not the project; the folder it stands in."""
    folder = tmp_path_factory.mktemp("machine")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    [packages] = (folder / "venv").glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but its own .pth files, the one of this project among them, are not read.
    (packages / "all-but-this-project.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
    (folder / "empty").mkdir()
    return folder


def run_on(machine: Path, stack: Stack, git: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python there, in an empty directory, with git's configuration as given."""
    (machine / "gitconfig").write_text(
        "".join(f'[url "{there}"]\n\tinsteadOf = {here}\n' for here, there in git.items()), "utf-8"
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
    """A run as the server tells of it now, and its log."""
    async with get_client() as client:
        where = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
        return await client.read_flow_run(run.id), "\n".join(log.message for log in await client.read_logs(where))


@pytest.fixture(scope="module")
def prepared(server: Stack) -> Iterator[Stack]:
    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        register(server.environment(), list(BLOCKS))
        yield server


def test_an_agent_without_the_code_clones_it_and_brings_green_2020_11_into_the_lake(
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
    """GitHub, to somebody whose token is wrong."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="GitHub"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def test_a_token_that_github_refuses_is_told_of_and_printed_nowhere(prepared: Stack, machine: Path) -> None:
    register({"FLOW_CODE_REPOSITORY": REPOSITORY, "FLOW_CODE_TOKEN": TOKEN}, ["github"])
    prefect("deployment", "apply", "deployments/github/web-gcs-deployment.yaml")
    run = asyncio.run(ask())
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever).start()
        secret = f"x-access-token:{TOKEN}@"
        here = {f"https://{secret}github.com/": f"http://{secret}127.0.0.1:{server.server_port}/"}
        # What an agent starts for a run.
        engine = run_on(machine, prepared, here, "-m", "prefect.engine", str(run.id))
        server.shutdown()
    run, log = asyncio.run(ended(run))
    assert run.state is not None
    assert run.state_name == "Failed"
    told = "\n".join([engine.stdout, engine.stderr, log, str(run.state.message)])
    assert "Authentication failed for 'http://127.0.0.1" in told
    assert TOKEN not in told

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
