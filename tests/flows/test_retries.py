"""What may pass is tried again; what stays wrong is not."""

import pytest
from prefect import flow, task

from flows.connectors.web import Unreachable
from flows.tasks.policy import RETRIES
from flows.tlc.errors import NotPublished


@pytest.mark.parametrize(
    ("error", "attempts"), [(Unreachable("later"), 4), (ConnectionError("cut"), 4), (NotPublished("never"), 1)]
)
def test_what_may_pass_is_tried_four_times_and_what_stays_wrong_once(error: Exception, attempts: int) -> None:
    tried = []

    @task(**{**RETRIES, "retry_delay_seconds": 0, "retry_jitter_factor": None})
    def work() -> None:
        tried.append(1)
        raise error

    @flow
    def one() -> None:
        work.submit().result()

    with pytest.raises(type(error)):
        one()
    assert len(tried) == attempts
