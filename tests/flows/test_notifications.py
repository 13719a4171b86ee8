"""A run or the server sends one notification when a run ends, with the full text. If that fails, the run is not affected."""

import asyncio
import email
import email.policy
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import requests
from mirakuru.base import Executor
from prefect import tags
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunNotificationPolicyFilter
from prefect.client.schemas.objects import FlowRun, FlowRunNotificationPolicy
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.states import Completed, Failed
from prefect.utilities.callables import get_call_parameters

from blocks import MAIL, NOTIFICATIONS, TAG
from blocks.environment import BadValue
from blocks.notify import main as attach
from blocks.register import ON_DEMAND, register
from flows.etl_web_gcs import etl_parent_flow, etl_web_gcs
from flows.ingest_data import ingest_data
from flows.tasks import bring, notify
from flows.tasks.notify import notifications, notify_run_ended
from flows.tlc.manifest import Outcome
from flows.tlc.trips import TripMonth
from local import demo
from local.servers.stack import Stack
from tests.command_line import prefect
from tests.flows.conftest import POSTGRES, Program, Runs
from tests.receivers import KEY, VALUES, Message, Receiver, mailbox, receiver
from tests.stores import Stores

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary5Zw"
WEBHOOK = f"custom-webhook/{NOTIFICATIONS}"

pytestmark = pytest.mark.operations


@pytest.fixture
def here() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def notified(ours: Stores, here: Receiver, monkeypatch: pytest.MonkeyPatch) -> Receiver:
    """Return a receiver that runs of the flows notify, as if `TRIPS_NOTIFY` had been set before their import."""
    register({"NOTIFY_WEBHOOK_URL": f"{here.url}/trips", "NOTIFY_WEBHOOK_TOKEN": CANARY}, ["custom-webhook"])
    monkeypatch.setenv("TRIPS_NOTIFY", WEBHOOK)
    for flow in (etl_parent_flow, etl_web_gcs, ingest_data):
        for event, hooks in notifications().items():
            monkeypatch.setattr(flow, event, hooks)
    return here


def body(message: Message) -> str:
    assert message.headers["Authorization"] == f"Bearer {CANARY}"
    text: str = message.json["body"]
    return text


def test_a_completed_run_sends_one_message_with_parameters_rows_duration_and_link(
    month: TripMonth, ours: Stores, runs: Runs, notified: Receiver
) -> None:
    places = runs.places(etl_parent_flow)
    with temporary_settings({PREFECT_UI_URL: "http://prefect.example"}):
        state = etl_parent_flow(month.color, month.year, [month.month], **places, return_state=True)
    rows = ours.site.rows_of(month.color, month.year, month.month)
    [message] = notified.messages  # the subflow of the month sends none
    name = f"etl-parent-flow / {month}"
    assert message.json["subject"] == f"{name}: Completed"
    first, parameters, total, each, link = body(message).splitlines()
    assert re.fullmatch(re.escape(f"{name}: Completed after ") + r"\d+\.\d s", first)
    assert parameters.startswith("parameters: ")
    for part in (f"color={month.color}", f"months=[{month.month}]", f"block_name={places['block_name']}"):
        assert part in parameters
    assert total == f"rows: {rows:,} published, {rows:,} in the lake"
    assert each == f"  - {state.result()[0]}"
    assert link == f"run: http://prefect.example/flow-runs/flow-run/{state.state_details.flow_run_id}"


def test_the_message_in_the_documentation_has_the_parameters_of_the_flow() -> None:
    run = FlowRun(flow_id=uuid4(), parameters=get_call_parameters(etl_parent_flow.fn, ("green", 2021, [1, 2]), {}))
    parameters = notify.message("etl-parent-flow", run, Failed(), None).splitlines()[1]
    assert parameters in (ROOT / "docs" / "notifications.md").read_text("utf-8").splitlines()


def test_a_failed_run_sends_its_error_and_the_rows_of_the_loaded_months(
    month: TripMonth, ours: Stores, runs: Runs, notified: Receiver
) -> None:
    places = runs.places(ingest_data) | {"source": ours.mirror, "rows": "all"}
    ingest_data("fhv", 2021, [7, 8], **places, return_state=True)  # only the first month is published
    [message] = notified.messages
    assert message.json["subject"] == "ingest-data / fhv 2021-07, 2021-08: Failed"
    lines = body(message).splitlines()
    rows = ours.site.rows_of("fhv", 2021, 7)
    assert f"rows: {rows:,} published, {rows:,} in the database" in lines
    [error] = [line for line in lines if line.startswith("error: ")]
    assert "1 of 2 months could not be loaded" in error
    assert "fhv 2021-08" in body(message)
    assert "is not published" in body(message)


def test_an_interrupted_run_is_reported_as_crashed(
    month: TripMonth, runs: Runs, notified: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bring.look_up, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runs.of(etl_web_gcs, month)
    [message] = notified.messages
    assert message.json["subject"] == f"etl-web-gcs / {month}: Crashed"
    assert "error: Execution was aborted" in body(message)


def test_a_password_in_a_parameter_is_not_sent(month: TripMonth, runs: Runs, notified: Receiver) -> None:
    source = f"https://user:{CANARY}@example.com/{{color}}_{{year}}-{{month:02d}}.csv"
    assert runs.of(etl_web_gcs, month, source=source).is_failed()
    [message] = notified.messages
    assert "source=https://***@example.com/" in body(message)
    assert CANARY not in message.body


@pytest.mark.parametrize("down", ["refuses", "answers 500", "hangs", "has no block"])
def test_a_failing_receiver_neither_fails_nor_delays_a_run(
    down: str, month: TripMonth, runs: Runs, notified: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    notified.answer, notified.delay = 500, 2 if down == "hangs" else 0
    if down == "hangs":
        monkeypatch.setattr(notify, "_PATIENCE", 0.5)
    if down == "refuses":
        with receiver() as gone:
            pass
        register({"NOTIFY_WEBHOOK_URL": f"{gone.url}/{CANARY}"}, ["custom-webhook"])
    elif down == "has no block":
        monkeypatch.setenv("TRIPS_NOTIFY", f"custom-webhook/not-{NOTIFICATIONS}")
    monkeypatch.setattr("flows.tasks.bring.open_store", lambda _: 1 / 0)
    state = runs.of(etl_web_gcs, month)
    assert "ZeroDivisionError" in (state.message or "")
    expected = {
        "refuses": "could not be notified; the run itself is not affected: ConnectError",
        "answers 500": "could not be notified; the run itself is not affected: HTTPStatusError 500",
        "hangs": "did not answer in 0 s",
        "has no block": "there is no such block",
    }[down]
    logs = runs.logs()
    assert expected in logs
    assert CANARY not in logs
    if down == "hangs":
        time.sleep(2)  # wait until the notifying thread, which uses this test's receiver, has ended


def test_a_run_does_not_notify_a_block_that_a_policy_notifies(
    month: TripMonth, runs: Runs, notified: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attach(["failed", "--block", WEBHOOK]) == 0
    try:
        nowhere = {"source": "nowhere"}
        runs.of(etl_web_gcs, month, **nowhere)  # without the tag, the policy does not apply
        assert len(notified.messages) == 1
        with tags(TAG):
            runs.of(etl_web_gcs, month, **nowhere)
            assert len(notified.messages) == 1
            runs.of(etl_web_gcs, month)  # the policy does not apply to completed runs
        assert [m.json["subject"].rpartition(" ")[2] for m in notified.messages] == ["Failed", "Completed"]
    finally:
        assert attach(["none", "--block", WEBHOOK]) == 0


def test_flows_have_no_hook_unless_blocks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIPS_NOTIFY", raising=False)
    assert notifications() == {}
    assert not etl_parent_flow.on_completion
    monkeypatch.setenv("TRIPS_NOTIFY", WEBHOOK)
    assert notifications() == {event: [notify_run_ended] for event in ("on_completion", "on_failure", "on_crashed")}


def test_every_kind_of_block_sends_a_valid_request(
    ours: Stores, here: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the addresses of the services are replaced; the requests are the blocks' own."""
    real = requests.Session.request

    def request(self: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
        return real(self, method, f"{here.url}/{url.removeprefix('https://')}", **options)

    monkeypatch.setattr(requests.Session, "request", request)
    sent: dict[str, list[Message]] = {}
    for kind, values in VALUES.items():
        [made] = register(values, [kind])
        assert made == f"{kind}/{NOTIFICATIONS}"
        here.messages.clear()
        here.answer, here.reply = {
            "twilio-sms": (201, "{}"),
            "opsgenie-webhook": (202, '{"result": "Request will be processed", "requestId": "1"}'),
        }.get(kind, (200, "ok"))
        notify_by(made)
        sent[kind] = [*here.messages]
    [slack], [teams], texts, [opsgenie] = sent.values()
    assert slack.path == VALUES["slack-webhook"]["NOTIFY_SLACK_URL"].replace("https:/", "")
    assert "all is well" in slack.body
    assert teams.path.startswith("/one.logic.azure.com:443/")
    assert f"sig={KEY}" in teams.path
    assert "all is well" in teams.body
    assert [text.form["To"] for text in texts] == [["+15550100001"], ["+15550100002"]]
    assert "all is well" in texts[0].form["Body"][0]
    assert opsgenie.headers["Authorization"] == f"GenieKey {KEY}"
    assert "all is well" in opsgenie.body
    assert {"type": "team", "name": "data"}.items() <= opsgenie.json["responders"][0].items()


def notify_by(made: str) -> None:
    block = Block.load(made)
    assert isinstance(block, NotificationBlock)
    with block.raise_on_failure():
        block.notify("all is well", subject="trips")


def test_an_e_mail_is_sent(ours: Stores) -> None:
    with mailbox() as box:
        url = f"mailto://127.0.0.1:{box.port}?from=flows@example.com&to=data@example.com"
        [made] = register({"NOTIFY_MAIL_URL": url}, ["mail"])
        assert made == f"slack-webhook/{MAIL}"
        notify_by(made)
    [mail] = [email.message_from_string(m.body, policy=email.policy.default) for m in box.messages]
    assert (mail["to"], mail["subject"]) == ("data@example.com", "trips")
    assert [part.get_content_type() for part in mail.walk()] == ["text/plain"]  # names and errors could be HTML
    assert "all is well" in mail.as_string()


BAD = [
    ("NOTIFY_SLACK_URL", f"https://example.com/{CANARY}"),
    ("NOTIFY_SLACK_URL", f"https://hooks.slack.com/{CANARY}"),
    ("NOTIFY_TEAMS_URL", f"https://example.com/{CANARY}"),
    ("NOTIFY_TWILIO_SID", CANARY),
    ("NOTIFY_TWILIO_TO", f"{CANARY}"),
    ("NOTIFY_TWILIO_FROM", ""),
    ("NOTIFY_OPSGENIE_REGION", CANARY),
    ("NOTIFY_MAIL_URL", f"smtp://user:{CANARY}@example.com"),
    ("NOTIFY_MAIL_URL", f"mailto://user:{CANARY}@"),
    ("NOTIFY_SLACK_URL", f"{VALUES['slack-webhook']['NOTIFY_SLACK_URL']}?verify=no&key={CANARY}"),
    ("NOTIFY_TEAMS_URL", f"{VALUES['ms-teams-webhook']['NOTIFY_TEAMS_URL']}&verify=no&key={CANARY}"),
    ("NOTIFY_MAIL_URL", f"mailtos://user:{CANARY}@example.com?to=data@example.com&verify=no"),
    ("NOTIFY_WEBHOOK_URL", CANARY),
    ("NOTIFY_WEBHOOK_URL", f"http://[{CANARY}"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=range(len(BAD)))
def test_a_bad_value_is_named_and_never_quoted(name: str, value: str, capfd: pytest.CaptureFixture[str]) -> None:
    [kind] = {kind for kind, (_, _, variable) in ON_DEMAND.items() if variable.split("_")[1] == name.split("_")[1]}
    with pytest.raises(BadValue, match=name) as raised:
        register(VALUES.get(kind, {}) | {name: value}, [kind])
    assert raised.value.__suppress_context__ or raised.value.__context__ is None
    assert CANARY not in str(raised.value)
    assert CANARY not in "".join(capfd.readouterr())


def policies() -> list[FlowRunNotificationPolicy]:
    async def read() -> list[FlowRunNotificationPolicy]:
        async with get_client() as client:
            return await client.read_flow_run_notification_policies(FlowRunNotificationPolicyFilter(is_active=None))

    return asyncio.run(read())


def test_attaching_twice_makes_one_policy_and_none_removes_it(
    ours: Stores, notified: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    for states in (["completed"], ["failed", "crashed"], ["failed", "crashed"]):
        assert attach([*states, "--block", WEBHOOK]) == 0
    [policy] = policies()
    assert (policy.state_names, policy.tags, policy.is_active) == (["Failed", "TimedOut", "Crashed"], [TAG], True)
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"{WEBHOOK} gets notifications of runs that end as Failed, TimedOut, Crashed"
    )
    assert attach(["none", "--block", WEBHOOK]) == 0
    assert policies() == []
    assert attach(["failed", "--block", "custom-webhook/nobody"]) == 1
    assert "there is no block custom-webhook/nobody" in capsys.readouterr().err


def test_the_server_notifies_about_completed_and_failed_runs_of_deployments(
    orchestrator: Stack, here: Receiver, tmp_path: Path
) -> None:
    env = orchestrator.environment()
    here.answer = 500  # the server must log the status without the token
    with temporary_settings({PREFECT_API_URL: env["PREFECT_API_URL"]}):
        webhook = {"NOTIFY_WEBHOOK_URL": here.url, "NOTIFY_WEBHOOK_TOKEN": CANARY}
        register(env | webhook, ["sqlalchemy-connector", "custom-webhook"])
        prefect("deployment", "apply", "deployments/ingest-data-deployment.yaml")
        assert attach(["completed", "failed", "crashed"]) == 0
        try:
            ids = asyncio.run(
                ask_for(
                    demo.DATABASE,
                    {"color": "green", "year": 2020, "months": [12], "source": "mirror"},
                    {"color": "green", "year": 2020, "months": [11], "source": "file:///nowhere/{year}-{month}.csv"},
                )
            )
            messages = here.wait_for(2, 300)
        finally:
            assert attach(["none"]) == 0
    assert len(messages) == 2
    completed, failed = sorted(map(body, messages), key=lambda text: "Failed" in text)
    for text, run, month, state in ((completed, ids[0], 12, "Completed"), (failed, ids[1], 11, "Failed")):
        assert f"ingest-data / green 2020-{month}: {state} at " in text
        assert "months" not in text  # `source` may have a signature in it, so the server sends no parameters
        assert f"run: {env['PREFECT_UI_URL']}/flow-runs/flow-run/{run}" in text
    assert "Nothing was loaded." in failed
    log = (orchestrator.state / "log" / "prefect.log").read_text("utf-8")
    assert "500 Internal Server Error" in log
    assert CANARY not in log
    idle(orchestrator.executors["agent"])


def idle(agent: Executor) -> None:
    """Wait until the processes of the agent's runs have ended. An agent that is stopped earlier waits until it is killed."""
    assert agent.process
    psutil.wait_procs(psutil.Process(agent.process.pid).children(recursive=True), timeout=60)


async def ask_for(deployment: str, *parameters: dict[str, Any]) -> list[str]:
    """Start several runs of a deployment at the same time and return their ids."""
    async with get_client() as client:
        found = await client.read_deployment_by_name(deployment)
        return [
            str((await client.create_flow_run_from_deployment(found.id, parameters=values)).id) for values in parameters
        ]


def test_a_program_sends_a_notification_if_the_variable_is_set(
    month: TripMonth, ours: Stores, notified: Receiver, program: Program
) -> None:
    done = program(
        "ingest_data", month.color, month.year, month.month, "--block-name", POSTGRES, "--source", ours.official,
        TRIPS_NOTIFY=WEBHOOK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [message] = notified.messages
    assert "not on any server: PREFECT_API_URL is not set" in body(message)


def test_the_message_about_a_withdrawal_says_that_the_store_has_no_row_of_the_month(
    month: TripMonth, runs: Runs
) -> None:
    loaded = runs.lake_by_hand(month).manifest
    outcome = Outcome(store="lake", status="withdrawn", manifest=loaded.withdrawn("run"))
    run = FlowRun(flow_id=uuid4(), name="r", parameters={})
    text = notify.message("withdraw", run, Completed(), [outcome])
    assert f"rows: {loaded.source_rows:,} published, 0 in the lake" in text
