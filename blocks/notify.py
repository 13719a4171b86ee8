"""Notify by the notification blocks when a run of this project ends: `python -m blocks.notify completed failed crashed`.

Running it again replaces the earlier states. `python -m blocks.notify none` ends the notifications.
"""

import argparse
import asyncio
import sys
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import FlowRunNotificationPolicyFilter
from prefect.client.schemas.objects import BlockDocument

from blocks import MAIL, NOTIFICATIONS, TAG
from blocks.environment import NO_SERVER, BadValue, no_server, require_api_key

# The state of a failed run can also have the name TimedOut.
STATES = {"completed": ["Completed"], "failed": ["Failed", "TimedOut"], "crashed": ["Crashed"]}

# The server knows neither the number of rows nor the duration. It knows the parameters, but `source` may have a signature in it.
TEMPLATE = """{flow_name} / {flow_run_name}: {flow_run_state_name} at {flow_run_state_timestamp}
message: {flow_run_state_message}
run: {flow_run_url}"""


class NothingToAttach(Exception):
    """The block does not exist. The text says how to make one."""


async def attach(states: list[str], names: list[str]) -> list[str]:
    """Set one notification policy per block.

    Args:
        states: Keys of `STATES`. An empty list deletes the policies.
        names: Blocks, such as `slack-webhook/name`. An empty list means all blocks that `blocks.register` made.

    Returns:
        What was done, one line per block.

    Raises:
        NothingToAttach: A named block does not exist, or there is no notification block.
    """
    async with get_client() as client:
        return [await _attach(client, block, states) for block in await _blocks(client, names)]


async def _blocks(client: PrefectClient, names: list[str]) -> list[BlockDocument]:
    every: list[BlockDocument] = []
    while page := await client.read_block_documents(limit=200, offset=len(every), include_secrets=False):
        every += page
    wanted = [b for b in every if (_name(b) in names if names else b.name in (NOTIFICATIONS, MAIL))]
    found = {_name(block): block for block in wanted}
    if missing := [name for name in names if name not in found]:
        raise NothingToAttach(f"there is no block {', '.join(missing)}; `prefect block ls` lists all blocks.")
    if not found:
        raise NothingToAttach(
            "there is no notification block: set one of the NOTIFY_ variables of .env.example and run "
            "`python -m blocks.register`, or name a block of your own with --block."
        )
    return list(found.values())


def _name(block: BlockDocument) -> str:
    return f"{block.block_type.slug if block.block_type else ''}/{block.name}"


async def _attach(client: PrefectClient, block: BlockDocument, states: list[str]) -> str:
    mine = await _policies(client, block.id)
    wanted = [name for state in states for name in STATES[state]]
    policy: dict[str, Any] = {"state_names": wanted, "message_template": TEMPLATE}
    if wanted and mine:
        await client.update_flow_run_notification_policy(mine[0], is_active=True, **policy)
    elif wanted:
        await client.create_flow_run_notification_policy(block.id, tags=[TAG], **policy)
    for surplus in mine[1:] if wanted else mine:
        await client.delete_flow_run_notification_policy(surplus)
    what = f"notifications of runs that end as {', '.join(wanted)}" if wanted else "no notifications any more"
    return f"{_name(block)} gets {what}"


async def _policies(client: PrefectClient, block: UUID) -> list[UUID]:
    """Return the ids of a block's policies for this project's runs."""
    every = await client.read_flow_run_notification_policies(FlowRunNotificationPolicyFilter(is_active=None))
    return [policy.id for policy in every if policy.block_document_id == block and policy.tags == [TAG]]


def main(arguments: list[str]) -> int:
    """Set the policies and print what was done. Return 0, or 1 after an error."""
    parser = argparse.ArgumentParser(prog="python -m blocks.notify", description=__doc__)
    parser.add_argument(
        "states", nargs="+", choices=[*STATES, "none"], help="the states of ended runs that send a notification"
    )
    parser.add_argument("--block", action="append", default=[], help="a notification block, such as slack-webhook/mine")
    options = parser.parse_args(arguments)
    states = [state for state in STATES if state in options.states]
    try:
        require_api_key()
        print("\n".join(asyncio.run(attach(states, options.block))))
    except (BadValue, NothingToAttach) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except NO_SERVER as error:
        gone = isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 404
        why = "this server has no notification policies; on Prefect Cloud make an automation in the UI instead."
        print(f"error: {why if gone else no_server(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
