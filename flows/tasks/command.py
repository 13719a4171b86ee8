"""Run a flow as a program: its parameters come from the command line, and its exit status shows whether it succeeded."""

import gc
import inspect
import itertools
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from types import FrameType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import click
import httpx
import typer
from prefect import Flow
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError

from blocks.environment import BadValue, no_server, require_api_key
from flows.connectors.guard import allow_by_default
from flows.tlc.errors import TripDataError

# The errors that follow from a PREFECT_API_URL that is not a Prefect server.
_NO_SERVER = httpx.ConnectError | httpx.UnsupportedProtocol | httpx.InvalidURL
_MEANT_FOR_PEOPLE = (TripDataError, BadValue, ParameterTypeError)


def run_as_program(flow: Flow[..., Any], show: Callable[[Any], None] = lambda result: None) -> None:
    """Run `flow` with parameters from the command line.

    Parameters without a default, or with the default None, are positional arguments. All others are `--options`.

    Args:
        flow: The flow.
        show: Prints the flow's result; None if the log already shows it.
    """
    if not gc.isenabled():  # the program turned it off for its imports
        gc.freeze()  # what was imported stays: no collection needs to examine it
        gc.enable()
    described = flow.fn.__doc__ or ""
    help_texts = _help_texts(described)

    def command(**parameters: Any) -> None:
        allow_by_default()
        signal.signal(signal.SIGINT, _interrupted)
        if twice := _named_twice(parameters):
            print(f"error: {twice}", file=sys.stderr)
            raise typer.Exit(2)
        try:
            require_api_key()
            show(flow(**parameters))
        except Exception as error:  # the run's log has the traceback
            print(f"error: {_in_words(error)}", file=sys.stderr)
            raise typer.Exit(1) from None

    signature = inspect.signature(flow.fn)
    hints = get_type_hints(flow.fn)  # drops the Annotated metadata, which is for the UI's form
    # A parameter that takes some words or any text is plain text for typer.
    types = {
        name: str if str in get_args(hint) and get_origin(hint) is not list else hint for name, hint in hints.items()
    }
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            p.replace(annotation=_option(types[name], p, help_texts.get(name)), kind=inspect.Parameter.KEYWORD_ONLY)
            for name, p in signature.parameters.items()
        ],
        return_annotation=None,
    )
    command.__doc__ = described.split("Args:")[0].strip()
    if all(p.default not in (inspect.Parameter.empty, None) for p in signature.parameters.values()):
        options = {f"--{name.replace('_', '-')}": hint for name, hint in hints.items()}
        lists = {option for option, hint in options.items() if get_origin(hint) is list}
        texts = {option for option, hint in options.items() if hint is str}
        sys.argv[1:] = _each_with_its_option(sys.argv[1:], lists, texts)
    typer.run(command)


def _each_with_its_option(words: Sequence[str], lists: Collection[str], texts: Collection[str]) -> list[str]:
    """Convert `--into lake warehouse` to `--into lake --into warehouse`, and `--history green 2021` to one text.

    `lists` and `texts` are the options that take lists and texts. It is for programs without positional arguments: elsewhere,
    a word after an option's value may be such an argument.
    """
    every: list[str] = []
    option = ""
    for before, word in pairwise(["", *words]):
        if word.startswith("-"):
            option = word.partition("=")[0]
        elif before != option and option in texts:
            every[-1] += f" {word}"
            continue
        elif before != option and option in lists:
            every.append(option)
        every.append(word)
    return every


# A run names its months by year and months, or by a range. A deployment may have stored the first, so a flow accepts both.
# On a command line, both are a mistake.
_EITHER, _OR = ("year", "months"), ("since", "until")


def _named_twice(parameters: dict[str, Any]) -> str:
    """Return an error text if both ways are used, else ""."""
    if any(parameters.get(name) for name in _EITHER) and any(parameters.get(name) for name in _OR):
        return "give a year and months, or --since and --until, not both. Nothing was started."
    return ""


_PATIENCE = 10.0  # seconds that Prefect gets, after a second Ctrl-C, to report the run as crashed
_interrupts = itertools.count(1)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C: the first lets the flow end by itself, the second ends the process.

    The process may die at any point: no month is ever published in part.
    """
    if next(_interrupts) > 1:
        ending = threading.Timer(_PATIENCE, os._exit, [128 + number])
        ending.daemon = True
        ending.start()
    signal.default_int_handler(number, frame)


def _option(kind: Any, parameter: inspect.Parameter, help_text: str | None) -> Any:
    """Return a parameter's type, annotated for typer."""
    about: dict[str, Any] = {"help": help_text}
    item = next(iter(get_args(kind)), None)
    if get_origin(kind) is list and get_origin(item) is Literal:  # typer supports a Literal, but not a list of them
        kind, about["click_type"] = list[str], click.Choice(get_args(item))
    in_order = parameter.default in (inspect.Parameter.empty, None)
    return Annotated[kind, typer.Argument(**about) if in_order else typer.Option(**about)]


def _in_words(error: Exception) -> str:
    """Return an error as text for the user of the command."""
    if isinstance(error, _MEANT_FOR_PEOPLE):
        return str(error)
    # Prefect raises "cannot reach the API" even if the API answered with an error; the cause has the answer.
    for answer in (error, error.__cause__):
        if isinstance(answer, PrefectHTTPStatusError | _NO_SERVER):
            return no_server(answer)
    if isinstance(error, json.JSONDecodeError) and _is_the_api_clients(error):
        return no_server(error)
    return f"{type(error).__name__}: {error}"


def _is_the_api_clients(error: Exception) -> bool:
    """Return whether Prefect's API client raised the error because another server answers at the API's address."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = [name for name in modules if name.startswith(("prefect.", "flows.", "blocks."))]
    return bool(raised_in) and raised_in[-1].startswith("prefect.client.")


def _help_texts(docstring: str) -> dict[str, str]:
    """Return the texts of a docstring's `Args:`, by parameter. The UI's form shows the same texts."""
    _, _, args = docstring.partition("Args:")
    lines = [line.strip() for line in args.split("Returns:")[0].splitlines() if line.strip()]
    return dict(line.split(": ", 1) for line in lines if ": " in line)
