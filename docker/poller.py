"""Run `prefect agent start …` or `prefect worker start …`, and touch a file each time the server answers a poll.

`healthy.py` reads the file's time. A queue's `last_polled` on the server is not enough: another agent may poll the same queue.
"""

import functools
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from prefect.cli import app
from prefect.client.orchestration import PrefectClient

MARK = Path(tempfile.gettempdir(), "polled")  # the same as in healthy.py, which must not import Prefect: that is slow


def marked(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap `ask` so that it touches `MARK` after each answered call."""

    @functools.wraps(ask)
    async def asked(*arguments: Any, **options: Any) -> Any:
        answer = await ask(*arguments, **options)
        MARK.touch()
        return answer

    return asked


# Wrap the client's calls, not the agent's loop: the loop only logs connection errors. For a paused queue, the agent reads only
# the queue itself.
for call in ("get_runs_in_work_queue", "get_scheduled_flow_runs_for_work_pool", "read_work_queue_by_name"):
    setattr(PrefectClient, call, marked(getattr(PrefectClient, call)))

if __name__ == "__main__":
    sys.exit(app())
