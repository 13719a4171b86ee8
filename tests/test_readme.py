"""The README's commands work as printed: a shell runs them against a real server and agent."""

import asyncio
import re
import subprocess
from pathlib import Path

import pytest
import sqlalchemy
import yaml
from google.cloud import bigquery
from rich.console import Console

from local import demo
from local.servers.stack import Stack

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(heading: str) -> list[str]:
    """Return the commands of the shell blocks under a heading of the README, with continued lines joined."""
    section = re.split(r"^## ", README, flags=re.MULTILINE)
    [text] = [part for part in section if part.startswith(heading)]
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture(scope="module")
def prepared(orchestrator: Stack) -> Stack:
    demo.prepare(orchestrator.environment(), Console(quiet=True))
    return orchestrator


def run(command: str, stack: Stack, folder: Path = ROOT) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=stack.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_the_commands_under_five_minutes_load_months_into_all_three_stores(prepared, tmp_path):
    wanted = ("prefect deployment run", "python flows/", "echo")
    for command in commands("Five minutes"):
        if command.startswith(wanted):
            run(command, prepared)

    engine = sqlalchemy.create_engine(prepared.env["POSTGRES_URL"])
    with engine.connect() as connection:
        green = connection.execute(
            sqlalchemy.text("SELECT source_rows, loaded FROM loads WHERE color = 'green' AND file_month = '2021-04-01'")
        ).one()
        assert green.source_rows > green.loaded > 10_000
    engine.dispose()
    client = bigquery.Client(project=prepared.env["GOOGLE_CLOUD_PROJECT"])
    rows = {str(r["file_month"]): r["loaded"] for r in client.query_and_wait("SELECT * FROM trips_data_all.loads")}
    assert {"2021-04-01", "2021-05-01"} <= rows.keys()


def test_the_commands_of_the_deployments_section_work(prepared, tmp_path):
    run("cp -r flows deployments " + str(tmp_path), prepared)
    for command in commands("Deployments"):
        if command.startswith(("prefect deployment apply", "prefect deployment build")):
            run(command, prepared, tmp_path)
    assert (tmp_path / "green-deployment.yaml").exists()
    named = {
        m["flow_name"] + "/" + m["name"]
        for m in map(yaml.safe_load, map(Path.read_text, ROOT.glob("deployments/*.yaml")))
    }
    assert named >= set(re.findall(r'prefect deployment run "([^"]+)"', README))


def test_the_demo_runs_deployments_through_the_agent_and_accounts_for_every_row(prepared):
    samples = (demo.Sample("green", 2020, (1,), "mirror"),)
    env = prepared.environment()
    with demo.programs_in(env) as programs:
        asyncio.run(demo.run_all(env, programs, Console(quiet=True), samples))
        counts = programs.submit(demo.count, samples).result()
    assert [str(c.trip_month) for c in counts] == ["green 2020-01"]
    assert all(c.reconciled and c.published > c.database > 10_000 for c in counts)
    query = sqlalchemy.text("SELECT started_by FROM loads_history WHERE color = 'green' AND file_month = '2020-01-01'")
    engine = sqlalchemy.create_engine(env["POSTGRES_URL"])
    with engine.connect() as connection:
        assert connection.execute(query).scalars().all() == ["run of ingest-data/parametrized ny-taxi ingest"]
    engine.dispose()
