"""Make notification blocks from the environment, each of the type that Prefect has for the service.

Prefect sends messages through Apprise. Newer versions of Apprise do not know Prefect's default `notify_type`, and then send
nothing and report no error. Every block here sets `info`, or `warning` for Opsgenie, where `info` is not an alert.
"""

import logging
import re
from typing import Any
from urllib.parse import urlsplit

from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.fields import SecretDict
from prefect.blocks.notifications import (
    AbstractAppriseNotificationBlock,
    CustomWebhookNotificationBlock,
    MicrosoftTeamsWebhook,
    OpsgenieWebhook,
    SlackWebhook,
    TwilioSMS,
)

from blocks.environment import BadValue, Environment, required

Values = dict[str, Any]

# Apprise logs URLs that it cannot load, with one or two letters of their passwords, and notes about services' plans.
logging.getLogger("apprise").propagate = False


def _apprise(kind: type[AbstractAppriseNotificationBlock], name: str, **values: Any) -> NotificationBlock:
    """Return a block of `kind`. Raise `BadValue`, about the variable `name`, if Apprise does not accept the values."""
    try:
        block = kind(**{"notify_type": "info"} | values)
    except (TypeError, ValueError):  # the error's text may contain a secret
        block = None
    if block is None or not len(block._apprise_client):
        raise BadValue(f"{name} is not what {kind._block_type_name} takes; see .env.example.")
    if not all(service.verify_certificate for service in block._apprise_client):
        raise BadValue(f"{name} turns off the check of certificates; remove verify= from it.")
    return block


def _listed(environment: Environment, name: str, example: str) -> list[str]:
    return re.split(r"[,\s]+", required(environment, name, example))


def slack(environment: Environment) -> NotificationBlock:
    """Return a block that posts to Slack through an incoming webhook: `NOTIFY_SLACK_URL`."""
    url = required(environment, "NOTIFY_SLACK_URL", "https://hooks.slack.com/services/...")
    if not url.startswith("https://hooks.slack"):
        raise BadValue("NOTIFY_SLACK_URL must begin with https://hooks.slack.com/services/.")
    return _apprise(SlackWebhook, "NOTIFY_SLACK_URL", url=url)


def teams(environment: Environment) -> NotificationBlock:
    """Return a block that posts to Microsoft Teams through a workflow (Power Automate): `NOTIFY_TEAMS_URL`."""
    example = "https://....logic.azure.com:443/workflows/.../triggers/manual/paths/invoke?...&sig=..."
    return _apprise(MicrosoftTeamsWebhook, "NOTIFY_TEAMS_URL", url=required(environment, "NOTIFY_TEAMS_URL", example))


def twilio(environment: Environment) -> NotificationBlock:
    """Return a block that sends text messages through Twilio: `NOTIFY_TWILIO_TOKEN`, `…_SID`, `…_FROM` and `…_TO`."""
    token = required(environment, "NOTIFY_TWILIO_TOKEN", "the auth token of the account")
    to = _listed(environment, "NOTIFY_TWILIO_TO", "+15550100001,+15550100002")
    if not all(re.fullmatch(r"\+[0-9]{7,15}", number) for number in to):  # Apprise would send to the sender instead
        raise BadValue("NOTIFY_TWILIO_TO is not a list of telephone numbers such as +15550100001.")
    return _apprise(
        TwilioSMS,
        "One of NOTIFY_TWILIO_TOKEN, NOTIFY_TWILIO_SID, NOTIFY_TWILIO_FROM and NOTIFY_TWILIO_TO",
        account_sid=required(environment, "NOTIFY_TWILIO_SID", "AC..."),
        auth_token=token,
        from_phone_number=required(environment, "NOTIFY_TWILIO_FROM", "+15550100000"),
        to_phone_numbers=to,
    )


def opsgenie(environment: Environment) -> NotificationBlock:
    """Return a block that sends Opsgenie alerts: `NOTIFY_OPSGENIE_KEY`, and `…_TEAMS` unless the key belongs to a team."""
    key = required(environment, "NOTIFY_OPSGENIE_KEY", "the key of an API integration")
    teams = environment.get("NOTIFY_OPSGENIE_TEAMS", "").strip()
    targets: Values = {"target_team": re.split(r"[,\s]+", teams)} if teams else {}
    region = environment.get("NOTIFY_OPSGENIE_REGION", "").strip() or "us"
    return _apprise(
        OpsgenieWebhook,
        "One of NOTIFY_OPSGENIE_KEY, NOTIFY_OPSGENIE_TEAMS and NOTIFY_OPSGENIE_REGION",
        apikey=key,
        region_name=region,
        notify_type="warning",
        **targets,
    )


def mail(environment: Environment) -> NotificationBlock:
    """Return a block that sends e-mail through any SMTP server: `NOTIFY_MAIL_URL`, a `mailtos://` URL.

    Prefect has no block for SMTP. Its Slack block passes the URL to Apprise unchanged, and Apprise can send e-mail.
    """
    url = required(environment, "NOTIFY_MAIL_URL", "mailtos://user:password@example.com?smtp=smtp.example.com&to=...")
    if not url.startswith(("mailto://", "mailtos://")):
        raise BadValue("NOTIFY_MAIL_URL must begin with mailtos:// (or mailto://, without encryption).")
    # By default Apprise sends HTML. Names and errors could be links in it.
    if "format=" not in url.partition("?")[2]:
        url += f"{'&' if '?' in url else '?'}format=text"
    return _apprise(SlackWebhook, "NOTIFY_MAIL_URL", url=url)


def webhook(environment: Environment) -> NotificationBlock:
    """Return a block that POSTs JSON, `{"subject": …, "body": …}`, to `NOTIFY_WEBHOOK_URL`.

    `NOTIFY_WEBHOOK_TOKEN`, if set, is the bearer token. Prefect shows this block's URL and headers to every user, so both refer
    to the block's secrets, which contain the values.
    """
    url = required(environment, "NOTIFY_WEBHOOK_URL", "https://example.com/hooks/trips")
    token = environment.get("NOTIFY_WEBHOOK_TOKEN", "").strip()
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadValue("NOTIFY_WEBHOOK_URL is not an http:// or https:// URL.")
    return CustomWebhookNotificationBlock(
        name="ny-taxi",
        url="{{url}}",
        json_data={"subject": "{{subject}}", "body": "{{body}}"},
        headers={"Authorization": "Bearer {{token}}"} if token else None,
        cookies=None,
        timeout=5,
        secrets=SecretDict({"url": url} | ({"token": token} if token else {})),
    )
