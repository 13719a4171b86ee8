"""The commands `up`, `down` and `status` of `python -m local.servers.background`, which `make` runs."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
from test_stack import processes_of

from local.servers.background import ROOT


def local(state: Path, *words: str, services: str = "postgres", **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local.servers.background", "--state", str(state), "--services", services, *words],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )


def sourced(state: Path, name: str) -> str:
    script = f'. "{state}/env" && printf %s "${name}"'
    return subprocess.run(["sh", "-euc", script], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def state(tmp_path: Path, own_servers: None) -> Iterator[Path]:
    folder = tmp_path / "it's a state"
    yield folder
    local(folder, "down")
    assert processes_of(folder) == []


def test_up_writes_the_addresses_and_down_removes_them(state: Path) -> None:
    up = local(state, "up")
    assert up.returncode == 0, up.stdout + up.stderr
    assert "postgres" in up.stdout
    psycopg2.connect(sourced(state, "POSTGRES_URL")).close()
    assert sourced(state, "PREFECT_HOME") == str(state / "prefect")
    assert (state / "env").stat().st_mode & 0o077 == 0

    again = local(state, "up")
    assert (again.returncode, again.stdout[:10]) == (0, "already up")
    status = local(state, "status")
    assert (status.returncode, len(status.stdout.splitlines())) == (0, 2)
    assert "postgres   up" in status.stdout

    other = local(state, "up", services="postgres,worker")
    assert other.returncode == 1
    assert "the services run without worker: stop them with `make down`" in other.stderr

    down = local(state, "down")
    assert (down.returncode, down.stdout.splitlines()[-1]) == (0, "stopped")
    assert not (state / "env").exists()
    assert processes_of(state) == []
    assert local(state, "down").stdout == "nothing to stop\n"


@pytest.mark.parametrize("then", ["up", "down"])
def test_up_and_down_work_after_the_supervisor_was_killed(state: Path, then: str) -> None:
    assert local(state, "up").returncode == 0
    os.kill(int((state / "supervisor.pid").read_text()), signal.SIGKILL)
    assert processes_of(state)
    done = local(state, then)
    assert done.returncode == 0, done.stdout + done.stderr
    assert bool(processes_of(state)) == (then == "up")


def test_down_does_not_stop_a_foreign_process_with_the_pid_of_a_stale_file(state: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as foreign:
        state.mkdir()
        (state / "supervisor.pid").write_text(str(foreign.pid))
        assert local(state, "down").stdout == "nothing to stop\n"
        assert psutil.Process(foreign.pid).is_running()
        foreign.kill()


def test_a_service_that_dies_is_logged_and_reported_by_up(state: Path) -> None:
    assert local(state, "up").returncode == 0
    os.kill(int((state / "postgres" / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    log = state / "log" / "supervisor.log"
    with subprocess.Popen(
        ["tail", "-F", str(log)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as tail:
        assert tail.stdout
        assert "postgres ended by itself" in tail.stdout.readline()
        tail.kill()
    assert local(state, "status").returncode == 1
    again = local(state, "up")
    assert again.returncode == 1
    assert "postgres ended by itself" in again.stderr
    assert "`make down up` starts all again" in again.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"PREFECT_PORT": "http"}, "PREFECT_PORT=http is not a port"), ({"PREFECT_PORT": "99999"}, "is not a port")],
)
def test_an_invalid_setting_is_reported_in_one_line(state: Path, settings: dict[str, str], message: str) -> None:
    done = local(state, "up", **settings)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
