"""`prefect agent start …` or `prefect worker start …`, leaving a mark each time the server was asked for work and answered.

`healthy.py` looks at the mark. The server cannot tell it: a queue's `last_polled` is as fresh if another agent polls the queue.
"""

import functools
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from prefect.agent import PrefectAgent
from prefect.cli import app
from prefect.workers.base import BaseWorker

MARK = Path(tempfile.gettempdir(), "polled")  # healthy.py has the same; it must not wait for an import of Prefect


def marked(poll: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """`poll`, touching the mark after each call that did not raise."""

    @functools.wraps(poll)
    async def polled(*arguments: Any, **options: Any) -> Any:
        answer = await poll(*arguments, **options)
        MARK.touch()
        return answer

    return polled


for kind in (PrefectAgent, BaseWorker):
    kind.get_and_submit_flow_runs = marked(kind.get_and_submit_flow_runs)

if __name__ == "__main__":
    sys.exit(app())
