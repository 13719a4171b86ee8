"""What the environment says, and how to say that it is wrong: variables, and the Prefect server that two of them name."""

from collections.abc import Mapping

import httpx

Environment = Mapping[str, str]


class BadValue(Exception):
    """A variable of the environment is missing or malformed; the text names it and never quotes it."""


def required(environment: Environment, name: str, example: str) -> str:
    """The value of a variable that has to be there."""
    value = environment.get(name, "").strip()
    if not value:
        raise BadValue(f"{name} is not set; for example {name}='{example}'")
    return value


def no_server(error: httpx.HTTPError | httpx.InvalidURL) -> str:
    """What to do about a Prefect server that did not answer as it should; its address may hold a password and is not told."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (401, 403):
        return (
            f"the Prefect server of PREFECT_API_URL refuses PREFECT_API_KEY ({status}): "
            "set it to a key of that server's, see docs/prefect-cloud.md."
        )
    why = type(error).__name__ if status is None else str(status)
    return f"the Prefect server of PREFECT_API_URL cannot be used ({why}): start it, or mend that setting."
