"""Addresses of published files: parse them, refuse unsafe ones, and shorten them for messages."""

import hashlib
import re
import unicodedata
from urllib.parse import SplitResult, unquote, urlsplit

SCHEMES = ("http", "https", "file")
_LONGEST = 300  # characters of an address that a text shows
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/?#%]+)(?::[0-9]{1,5})?")
_HIDDEN = "(not shown: it may contain a user name or password)"


class BadAddress(ValueError):
    """An address is malformed, or may have a user name in it. The error's text is safe to show to anybody."""


def escaped(text: str, most: int = _LONGEST) -> str:
    """Return untrusted text for a message: at most `most` characters, with unprintable ones escaped."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return plain if len(text) <= most and len(plain) <= most else f"{plain[:most]}…"


def shown(url: str) -> str:
    """Return an address in a form that is safe for logs, errors and reports.

    An address with an `@` outside of a `file:///` path is not shown at all: it may have a password in a place where
    no parser looks for one. The query is left out, because the query of a signed address has its signature.
    """
    if _may_hold_user(url):
        return f"an address {_HIDDEN}"
    address, query, _ = url.partition("?")
    return escaped(address) + ("?…" if query else "")


_STORED = re.compile(r"\?sha256=[0-9a-f]{16}")


def stored(url: str) -> str:
    """Return an address for manifests, metadata and cache keys: the query is replaced by a digest of it.

    A signed address has its signature in the query. The digest still shows whether two addresses are the same.
    """
    address, mark, query = url.partition("?")
    if not mark or lost_query(url):
        return url
    return f"{address}?sha256={hashlib.sha256(query.encode()).hexdigest()[:16]}"


def lost_query(url: str) -> bool:
    """Return whether `stored` replaced the query of an address, so that nothing can be fetched from it."""
    return bool(_STORED.fullmatch(url[url.find("?") :])) if "?" in url else False


def _may_hold_user(url: str) -> bool:
    # NFKC turns the full-width and small forms of @ into @, as some clients do in a host.
    plain = unicodedata.normalize("NFKC", url)
    authority = re.split(r"[/?#]", plain.partition("//")[2], maxsplit=1)[0]
    on_disk = re.match(r"(?i)file:///", plain)
    return ("@" in plain and not on_disk) or "%40" in authority


def parsed(url: str) -> SplitResult:
    """Return the parts of an http(s):// or file:// address.

    A `file://` address must have an empty host or localhost, an absolute path without `..`, no query and no fragment.

    Raises:
        BadAddress: The address is refused. The text says why.
    """
    if not all(c.isprintable() for c in url):
        raise BadAddress(f"{shown(url)!r} contains characters that cannot be printed; remove them")
    if _may_hold_user(url):
        raise BadAddress(
            "the address contains a user name or password, or an @ where one could be; it is not shown. Publish the files where"
            " none is needed; write %40 for an @ in a path"
        )
    try:
        parts = urlsplit(url)
        _ = parts.port if _HOST.fullmatch(parts.netloc) else None  # raises ValueError above 65535
    except ValueError as error:
        raise BadAddress(f"{shown(url)!r} is not a URL: {escaped(str(error), 80)}") from None
    if wrong := _wrong_in(url, parts):
        raise BadAddress(f"{shown(url)!r} {wrong}")
    return parts


def _wrong_in(url: str, parts: SplitResult) -> str:
    if parts.scheme not in SCHEMES or not url[len(parts.scheme) :].startswith("://"):
        return "is not an http(s):// or file:// URL"
    if "\\" in url:
        return "contains a backslash; write /, or %5C if a name really has one"
    if parts.scheme == "file":
        return _wrong_in_file(url, parts)
    if not _HOST.fullmatch(parts.netloc):
        return "has no valid host; write https://host/path"
    return "has a fragment; write %23 for a # in a path" if "#" in url else ""


def _wrong_in_file(url: str, parts: SplitResult) -> str:
    if parts.netloc.lower() not in ("", "localhost"):
        return f"names the host {parts.netloc!r}; write file:/// and the file's absolute path"
    if "?" in url or "#" in url:
        return "has a query or a fragment; write %3F for a ? and %23 for a # in a file's name"
    path = unquote(parts.path)
    if not path.startswith("/") or ".." in path.split("/") or not all(c.isprintable() for c in path):
        return "is not an absolute path; write file:/// and the path without .. in it"
    return ""


def path_of(url: str) -> str:
    """Return the decoded path of an address. Its ending gives the file's format."""
    return unquote(urlsplit(url).path)
