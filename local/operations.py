"""Write the table of errors in docs/operations.md from the error tree: `python -m local.operations`."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from flows.tlc import errors

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operations.md"
_BEGIN, _END = "<!-- errors: written by `make generated` from flows/tlc/errors.py -->\n", "<!-- end of the errors -->\n"


def groups() -> dict[str, list[str]]:
    """Return the groups of the tree in the module's docstring, each with the names of its errors."""
    lines = re.findall(r"^[├└]── (\w+) +(.*)$", inspect.getdoc(errors) or "", re.MULTILINE)
    return {group: re.findall(r"[A-Z]\w+", names) for group, names in lines}


def rows() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield each error's group, name, meaning, advice, and whether Prefect retries it."""
    for group, names in {"any": ["TripDataError"], **groups()}.items():
        for name in names:
            error = getattr(errors, name)
            meaning, advice = (" ".join(part.split()) for part in (inspect.getdoc(error) or "").split("\n\n"))
            retried = "yes" if issubclass(error, errors.PassingError) else "no"
            yield group, f"`{name}`", meaning, advice, retried


def page(text: str) -> str:
    """Return the page with the table of errors."""
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    table = [("about", "error", "means", "what to do", "retried"), ("---",) * 5, *rows()]
    lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
    return f"{before}{_BEGIN}\n{lines}\n\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
