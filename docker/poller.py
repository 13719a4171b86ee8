"""`prefect agent start …` or `prefect worker start …`, leaving a mark each time the server was asked for work and answered.

`healthy.py` looks at the mark. The server cannot tell it: a queue's `last_polled` is as fresh if another agent polls the queue.
"""

import functools
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from prefect.cli import app
from prefect.client.orchestration import PrefectClient

MARK = Path(tempfile.gettempdir(), "polled")  # healthy.py has the same; it must not wait for an import of Prefect


def marked(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """`ask`, touching the mark after each call that was answered."""

    @functools.wraps(ask)
    async def asked(*arguments: Any, **options: Any) -> Any:
        answer = await ask(*arguments, **options)
        MARK.touch()
        return answer

    return asked


# The client's calls and not the agent's loop, which logs an error of the connection and goes on. A paused queue is only read.
for call in ("get_runs_in_work_queue", "get_scheduled_flow_runs_for_work_pool", "read_work_queue_by_name"):
    setattr(PrefectClient, call, marked(getattr(PrefectClient, call)))

if __name__ == "__main__":
    sys.exit(app())
