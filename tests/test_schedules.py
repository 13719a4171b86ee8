"""The commands in docs/schedules.md work on a real server."""

import re
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from local.servers.stack import Stack
from tests.command_line import prefect

ROOT = Path(__file__).resolve().parent.parent
DEPLOYMENT = "bring-up-to-date/every month"

pytestmark = pytest.mark.operations


def commands(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def schedules(stack: Stack) -> list[dict[str, Any]]:
    answer = httpx.get(f"{stack.env['PREFECT_API_URL']}/deployments/name/{DEPLOYMENT}", trust_env=False)
    return [
        {"cron": s["schedule"]["cron"], "timezone": s["schedule"]["timezone"], "active": s["active"]}
        for s in answer.raise_for_status().json()["schedules"]
    ]


def test_the_schedule_can_be_applied_changed_stopped_resumed_and_cleared(server: Stack) -> None:
    ours = {"cron": "0 5 1 * *", "timezone": "America/New_York", "active": True}
    after = {
        "apply": [ours],
        "ls": [ours],
        "set-schedule": [ours | {"cron": "0 5 15 * *"}],
        "pause-schedule": [ours | {"cron": "0 5 15 * *", "active": False}],
        "resume-schedule": [ours | {"cron": "0 5 15 * *"}],
        "clear": [],
    }
    done = []
    with temporary_settings({PREFECT_API_URL: server.env["PREFECT_API_URL"]}):
        for program, *arguments in commands("schedules.md"):
            deed = next((word for word in arguments if word in after), None)
            if program == "prefect" and deed:
                prefect(*arguments)
                assert schedules(server) == after[deed], deed
                done.append(deed)
    assert done == ["apply", "ls", "set-schedule", "pause-schedule", "resume-schedule", "clear", "apply"]
