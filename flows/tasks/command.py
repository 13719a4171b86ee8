"""A flow as a program: its parameters are the command line, its success the exit status."""

import inspect
import sys
from typing import Annotated, Any, get_type_hints

import httpx
import typer
from prefect import Flow
from prefect.exceptions import ParameterTypeError, PrefectHTTPStatusError

from blocks.environment import no_server
from flows.tlc.errors import TripDataError

_MEANT_FOR_PEOPLE = (TripDataError, ParameterTypeError)


def run_as_program(flow: Flow[..., Any]) -> None:
    """Run `flow` with parameters from the command line: those without a default in order, the others as `--options`."""
    described = flow.fn.__doc__ or ""
    help_texts = _help_texts(described)

    def command(**parameters: Any) -> None:
        try:
            flow(**parameters)
        except Exception as error:  # with its traceback it is in the run's log already
            print(f"error: {_in_words(error)}", file=sys.stderr)
            raise typer.Exit(1) from None

    signature = inspect.signature(flow.fn)
    types = get_type_hints(flow.fn)  # without the extras that are for the UI's form
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            p.replace(
                annotation=Annotated[
                    types[name],
                    (typer.Argument if p.default is inspect.Parameter.empty else typer.Option)(
                        help=help_texts.get(name)
                    ),
                ],
                kind=inspect.Parameter.KEYWORD_ONLY,
            )
            for name, p in signature.parameters.items()
        ],
        return_annotation=None,
    )
    command.__doc__ = described.split("Args:")[0].strip()
    typer.run(command)


def _in_words(error: Exception) -> str:
    """An error for the person who typed the command."""
    if isinstance(error, _MEANT_FOR_PEOPLE):
        return str(error)
    # Prefect says that it cannot reach its API where the API said no.
    for answer in (error, error.__cause__):
        if isinstance(answer, PrefectHTTPStatusError | httpx.ConnectError):
            return no_server(answer)
    return f"{type(error).__name__}: {error}"


def _help_texts(docstring: str) -> dict[str, str]:
    """The lines of a docstring's `Args:`; the UI's form shows the same."""
    _, _, args = docstring.partition("Args:")
    lines = [line.strip() for line in args.split("Returns:")[0].splitlines() if line.strip()]
    return dict(line.split(": ", 1) for line in lines if ": " in line)
