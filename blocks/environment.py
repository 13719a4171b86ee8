"""Read variables of the environment and the files that they name, and explain what is wrong with them or the Prefect server."""

import json
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import httpx
from prefect.settings import PREFECT_API_KEY

Environment = Mapping[str, str]

MACHINE_KEY = "GOOGLE_APPLICATION_CREDENTIALS"
# Messages quote a value only if it looks like a path. Anything else may be a secret in the wrong variable.
_PATH = re.compile(r"(?=.{1,1024}$)(~[^/{}]{0,64}|\.{0,2}|[^/{}]{1,255})(/[^/{}]{0,255})*")
_PATH_BEGINS_OR_ENDS = re.compile(r"[~/]|\.{1,2}/|.*\.json$")


class BadValue(Exception):
    """A variable of the environment is missing or malformed. The text names it, and quotes its value only if it is a path."""


def required(environment: Environment, name: str, example: str) -> str:
    """Return the value of a required variable. Raise `BadValue`, with an example, if it is not set."""
    value = environment.get(name, "").strip()
    if not value:
        raise BadValue(f"{name} is not set; for example {name}='{example}'")
    return value


def like_path(value: str) -> bool:
    """Return whether a value looks like a path, and not like a key or password in the wrong variable."""
    return value.isprintable() and bool(_PATH_BEGINS_OR_ENDS.match(value) and _PATH.fullmatch(value))


def file_at(value: str) -> Path:
    """Return the readable file at a path, with `~` expanded. The text of `BadValue` ends a sentence that names the path."""
    try:
        path = Path(value).expanduser().absolute()
        if path.is_dir():
            raise BadValue("that is a folder")
        with path.open("rb"):
            return path
    except RuntimeError:
        raise BadValue("there is no such user, or the user has no home") from None
    except (FileNotFoundError, NotADirectoryError):
        where = "" if Path(value).is_absolute() or value.startswith("~") else f" in {Path.cwd()}"
        raise BadValue(f"there is no such file{where} on this machine") from None
    except PermissionError:
        raise BadValue(f"this user (uid {os.getuid()}) may not read it") from None
    except (OSError, ValueError) as error:
        raise BadValue(f"it cannot be read ({type(error).__name__})") from None


def key_file(environment: Environment, name: str) -> Path | None:
    """Return the key file that a variable names, with `~` expanded, or None if the variable is not set."""
    value = environment.get(name, "").strip()
    if not value:
        return None
    try:
        return file_at(value)
    except BadValue as wrong:
        if value.startswith("{"):
            raise BadValue(f"{name} contains a key instead of a path; save the key in a file and name that.") from None
        unquoted = value.strip("'\"")  # Docker and systemd do not remove quotes in a file of variables
        what = f"{name} names {value!r}, but {wrong}" if like_path(unquoted) else f"{name} names no readable file"
        advice = "correct the path" if unquoted == value else "remove the quotes around the path"
        raise BadValue(f"{what}; {advice}.") from None


def machine_key_fault() -> str:
    """Return what is wrong with the key file of GOOGLE_APPLICATION_CREDENTIALS, which Google refused; "" if it names none."""
    try:
        path = key_file(os.environ, MACHINE_KEY)
    except BadValue as wrong:
        return str(wrong)
    return f"{MACHINE_KEY} names {str(path)!r}, which is not a usable key; name a key file." if path else ""


def expand_machine_key(environment: MutableMapping[str, str] = os.environ) -> None:
    """Expand `~` in GOOGLE_APPLICATION_CREDENTIALS, because Google's library does not.

    A value that names no readable file stays unchanged; `key_file` explains what is wrong with it.
    """
    value = environment.get(MACHINE_KEY, "")
    if value.strip() != value or value.startswith("~"):
        try:
            environment[MACHINE_KEY] = str(key_file(environment, MACHINE_KEY) or "")
        except BadValue:
            return


def require_api_key() -> None:
    """Raise `BadValue` if PREFECT_API_KEY cannot be sent. Prefect's client would try it for a minute, and quote it."""
    if not re.fullmatch("[!-~]*", PREFECT_API_KEY.value() or ""):  # visible ASCII: what a header may have
        raise BadValue(
            "PREFECT_API_KEY has a space, a line end or another character that a key never has; set it to the key alone."
        )


NO_SERVER = (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError)
"""The errors of Prefect's client if `PREFECT_API_URL` is not a Prefect server that can be used."""


def no_server(error: httpx.HTTPError | httpx.InvalidURL | json.JSONDecodeError) -> str:
    """Return a message about a Prefect server that failed to answer, without its address, which may contain a secret."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (401, 403):
        return (
            f"the Prefect server of PREFECT_API_URL refuses PREFECT_API_KEY ({status}): "
            "set it to a key of that server, see docs/prefect-cloud.md."
        )
    why = type(error).__name__ if status is None else str(status)
    if isinstance(error, json.JSONDecodeError):
        why = "its answer is not JSON"
    return (
        f"the Prefect server of PREFECT_API_URL cannot be used ({why}): start it, or correct that setting; "
        "it is an address such as http://127.0.0.1:4200/api."
    )
