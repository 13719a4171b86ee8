"""What the environment says, and how to say that it is wrong: variables, files, and the Prefect server that two of them name."""

import json
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path

import httpx

Environment = Mapping[str, str]

MACHINE_KEY = "GOOGLE_APPLICATION_CREDENTIALS"
# What is taken for a path, and may be quoted; anything else may be a secret in the wrong place.
_PATH = re.compile(r"(?=.{1,1024}$)(~[^/{}]{0,64}|\.{0,2}|[^/{}]{1,255})(/[^/{}]{0,255})*")
_PATH_BEGINS_OR_ENDS = re.compile(r"[~/]|\.{1,2}/|.*\.json$")


class BadValue(Exception):
    """A variable of the environment is missing or malformed; the text names it, and quotes it only if it is a path."""


def required(environment: Environment, name: str, example: str) -> str:
    """The value of a variable that has to be there."""
    value = environment.get(name, "").strip()
    if not value:
        raise BadValue(f"{name} is not set; for example {name}='{example}'")
    return value


def like_path(value: str) -> bool:
    """Return whether a value is written as a path is, and is no key or password in the wrong place."""
    return value.isprintable() and bool(_PATH_BEGINS_OR_ENDS.match(value) and _PATH.fullmatch(value))


def file_at(value: str) -> Path:
    """Return the file at a path, with `~` in the place of the user's home.

    Raises:
        BadValue: There is no file that can be read; the text is the end of a sentence that names the path.
    """
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
    """Return the key file that a variable names, `~` expanded; None if it is not set.

    Raises:
        BadValue: The value names no file that can be read. The text quotes the path.
    """
    value = environment.get(name, "").strip()
    if not value:
        return None
    try:
        return file_at(value)
    except BadValue as wrong:
        if value.startswith("{"):
            raise BadValue(f"{name} holds a key instead of a path; save the key in a file and name that.") from None
        unquoted = value.strip("'\"")  # a file of variables for Docker or systemd may keep the quotes
        what = f"{name} names {value!r}, but {wrong}" if like_path(unquoted) else f"{name} names no readable file"
        advice = "correct the path" if unquoted == value else "remove the quotes around the path"
        raise BadValue(f"{what}; {advice}.") from None


def expand_machine_key(environment: MutableMapping[str, str] = os.environ) -> None:
    """Expand a `~` that the shell left in GOOGLE_APPLICATION_CREDENTIALS: Google's library does not.

    A value that names no file stays as it is; `key_file` says what is wrong with it.
    """
    value = environment.get(MACHINE_KEY, "")
    if value.strip() != value or value.startswith("~"):
        try:
            environment[MACHINE_KEY] = str(key_file(environment, MACHINE_KEY) or "")
        except BadValue:
            return


def no_server(error: httpx.HTTPError | httpx.InvalidURL | json.JSONDecodeError) -> str:
    """Return what to do about a Prefect server that did not answer as it should, without its address, which may be secret."""
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (401, 403):
        return (
            f"the Prefect server of PREFECT_API_URL refuses PREFECT_API_KEY ({status}): "
            "set it to a key of that server's, see docs/prefect-cloud.md."
        )
    why = type(error).__name__ if status is None else str(status)
    if isinstance(error, json.JSONDecodeError):
        why = "its answer is no JSON"
    return (
        f"the Prefect server of PREFECT_API_URL cannot be used ({why}): start it, or correct that setting; "
        "it is an address such as http://127.0.0.1:4200/api."
    )
