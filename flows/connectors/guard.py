"""Decide which addresses a run may read: public ones, the operator's own, and those that the environment allows.

Everyone who may start a run can set a deployment's `source`. It must not make this machine read its own files, or servers that
only this machine can reach. The address is therefore checked before any work, after every redirect, and at each connection.
"""

import functools
import ipaddress
import math
import os
import re
import socket
import ssl
import string
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

import httpcore
import httpx

from flows.tlc.addresses import BadAddress, parsed, shown
from flows.tlc.errors import MisconfiguredBlock, SourceNotAllowed, UnreadableFile

ALLOW = "TRIPS_ALLOW_SOURCES"
ALLOWANCES = {"file": "files of the machine that runs the flow", "private": "servers at private and local addresses"}
# Set by the operator, so their addresses are trusted.
OPERATORS = ("TLC_OFFICIAL_URL", "TLC_MIRROR_URL", "TLC_ZONES_URL")
_PORTS = {"http": 80, "https": 443}
_TIMEOUT = httpx.Timeout(60, connect=15)

# A cloud's metadata service gives credentials to any local caller. It never publishes trips, so no setting allows it.
_METADATA = (
    ipaddress.ip_network("169.254.0.0/16"),  # link-local: AWS, Google, Azure, Oracle, DigitalOcean, and ECS containers
    ipaddress.ip_network("fd00:ec2::/32"),  # AWS, IPv6
    ipaddress.ip_network("fd20:ce::254/128"),  # Google, IPv6
    ipaddress.ip_network("100.100.100.200/32"),  # Alibaba
    ipaddress.ip_network("168.63.129.16/32"),  # Azure's WireServer
    ipaddress.ip_network("192.0.0.192/32"),  # Oracle, older
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def allowances() -> set[str]:
    """Return the allowances of this process's environment: keys of `ALLOWANCES`."""
    return {word.strip() for word in os.environ.get(ALLOW, "").split(",")} & ALLOWANCES.keys()


def allow_by_default() -> None:
    """Allow everything in this process unless its environment says otherwise. For commands that users start on their machines."""
    os.environ.setdefault(ALLOW, ",".join(ALLOWANCES))


def require_allowed(url: str) -> None:
    """Raise `SourceNotAllowed` for a local file or a private address that this process may not read.

    This check does not resolve host names. `Wire` checks the addresses of a host when it connects.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        if not _is_operators_file(url):
            _require_allowance(url, "file")
        return
    _require_host(url, _host(parts.hostname), parts.port or _PORTS.get(parts.scheme, 0))


def _require_host(url: str, host: str, port: int, trusted: Iterable[tuple[str, int]] = ()) -> None:
    address = _literal(host)
    local = host == "localhost" or host.endswith(".localhost")
    if address and _is_metadata(address):
        raise _never(url)
    if (local or (address and not _is_public(address))) and (host, port) not in {*_operators_hosts(), *trusted}:
        _require_allowance(url, "private")


def _require_allowance(url: str, what: str) -> None:
    if what in allowances():
        return
    named = "a local file" if what == "file" else "at a private or local address"
    raise SourceNotAllowed(
        f"{shown(url)} is {named}, which this process may not read. To allow {ALLOWANCES[what]}, the operator sets"
        f" {ALLOW}={what} in the environment of the process that runs the flow (docs/secrets.md). Nothing was loaded."
    )


def _never(url: str) -> SourceNotAllowed:
    return SourceNotAllowed(
        f"{shown(url)} is an address of a cloud's metadata service, which is never read; check the source."
    )


def _host(name: str | None) -> str:
    """Return a host's name in the normal form that a client requests."""
    host = (name or "").rstrip(".")
    try:
        return host.encode("idna").decode().lower() if not host.isascii() else host.lower()
    except UnicodeError:
        return host.lower()


def _literal(host: str) -> Address | None:
    """Return the address that a host is written as (dotted, decimal, octal, hexadecimal or IPv6), or None for a name."""
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    with suppress(OSError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None


def _carried(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address embeds, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64 or address in ipaddress.IPv6Network("::/96"):
        inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address if int(address) in (0, 1) else inner
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None) or address


def _is_public(address: Address) -> bool:
    plain = _carried(address)
    site_local = isinstance(plain, ipaddress.IPv6Address) and plain.is_site_local
    return plain.is_global and not (plain.is_multicast or plain.is_reserved or site_local)


def _is_metadata(address: Address) -> bool:
    return any(_carried(address) in network for network in _METADATA)


def _operators_urls() -> list[str]:
    return [url for name in OPERATORS if (url := os.environ.get(name))]


def _operators_hosts() -> set[tuple[str, int]]:
    hosts = set()
    for url in _operators_urls():
        with suppress(ValueError):
            parts = parsed(url)
            hosts.add((_host(parts.hostname), parts.port or _PORTS.get(parts.scheme, 0)))
    return hosts - {("", 0)}


def _is_operators_file(url: str) -> bool:
    """Return whether a file:// address matches one of the operator's templates."""
    return any(url == template or re.fullmatch(_pattern(template), url) for template in _operators_urls())


def _pattern(template: str) -> str:
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError:
        return "(?!)"
    return "".join(re.escape(text) + ("" if field is None else r"(?:[a-z]+|\d+)") for text, field, *_ in pieces)


class Wire(httpcore.NetworkBackend):
    """The connections of one client. Each goes to a checked address. No operation waits beyond the deadline.

    A name is resolved once, and the connection goes to the checked addresses. A resolver that gives another answer the second
    time (DNS rebinding) has no effect.
    """

    def __init__(self, *, to_proxy: bool = False) -> None:
        self._backend = httpcore.SyncBackend()
        self._to_proxy = to_proxy  # the operator set this proxy in the environment; it resolves names itself
        self.trusted: set[tuple[str, int]] = set()
        self.deadline = math.inf

    def within(self, timeout: float | None) -> float | None:
        """Return how many seconds an operation may take: `timeout`, or less if the deadline is nearer."""
        if self.deadline == math.inf:
            return timeout
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("no complete answer within the time limit")
        return left if timeout is None else min(left, timeout)

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """Connect to the first address of a host that answers."""
        addresses = [host] if self._to_proxy else self.allowed_addresses(host, port)
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            try:
                stream = self._backend.connect_tcp(address, port, self.within(timeout), local_address, socket_options)
                return _Stream(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if left == 1:
                    raise
        raise httpcore.ConnectError(f"{host} has no address")

    def allowed_addresses(self, host: str, port: int) -> list[str]:
        """Return a host's addresses. Raise `SourceNotAllowed` if this process may not read one of them."""
        try:
            found = [str(at[4][0]) for at in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(str(error)) from error
        trusted = (_host(host), port) in {*_operators_hosts(), *self.trusted}
        for address in (ipaddress.ip_address(one.partition("%")[0]) for one in found):
            if _is_metadata(address):
                raise _never(f"http://{host}:{port}")
            if not _is_public(address) and not trusted:
                _require_allowance(f"http://{host}:{port}", "private")
        return list(dict.fromkeys(found))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, wire: Wire) -> None:
        self._stream, self._wire = stream, wire

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._wire.within(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._wire.within(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._wire.within(timeout)), self._wire)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@functools.cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()


class Client(httpx.Client):
    """An HTTP client that follows redirects and connects only to allowed addresses."""

    def __init__(self) -> None:
        try:
            # identity: the bytes are hashed and counted as published, so a proxy must not gzip them
            super().__init__(
                timeout=_TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"}, verify=_tls(),
                event_hooks={"request": [self._check_request], "response": [self._check_redirect]},
            )  # fmt: skip
        except (ValueError, httpx.InvalidURL, ImportError):  # the error's text may contain a proxy's password
            raise MisconfiguredBlock(
                "a proxy in HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not a URL that can be used; correct the variable."
            ) from None
        self._wires = [Wire()]
        # httpx has no public way to set a network backend and keep the environment's proxies.
        self._transport._pool._network_backend = self._wires[0]  # type: ignore[attr-defined]
        for proxy in filter(None, self._mounts.values()):
            self._wires.append(Wire(to_proxy=True))
            proxy._pool._network_backend = self._wires[-1]  # type: ignore[attr-defined]

    def answer_within(self, seconds: float) -> None:
        """Set the deadline, in seconds from now, for all reads and writes; `math.inf` for none."""
        for wire in self._wires:
            wire.deadline = time.monotonic() + seconds

    def _check_request(self, request: httpx.Request) -> None:
        url = str(request.url)
        host, port = _host(request.url.host), request.url.port or _PORTS.get(request.url.scheme, 0)
        _require_host(url, host, port, self._wires[0].trusted)
        if self._transport_for_url(request.url) is not self._transport:
            # The proxy connects, and some names only the proxy can resolve. Names that this machine resolves are checked.
            with suppress(httpcore.ConnectError):
                self._wires[0].allowed_addresses(host, port)

    def _check_redirect(self, answer: httpx.Response) -> None:
        """Check a redirect's target before httpx does, because httpx's errors quote the address."""
        if not answer.has_redirect_location:
            return
        asked = str(answer.request.url)
        try:
            # A signed address may have an @ in its query, and a fragment is never sent. Both are valid, so neither is checked.
            place = urldefrag(urljoin(asked, answer.headers["Location"])).url
            to = parsed(place.partition("?")[0])
            port = to.port or _PORTS[to.scheme]
        except (ValueError, KeyError) as error:
            why = error if isinstance(error, BadAddress) else "no http(s):// URL"
            raise UnreadableFile(f"{shown(asked)} redirects to an address that is refused: {why}.") from None
        # The operator's server may redirect to other ports of its own host.
        here = _host(answer.request.url.host)
        at = (here, answer.request.url.port or _PORTS[answer.request.url.scheme])
        if at in {*_operators_hosts(), *self._wires[0].trusted} and _host(to.hostname) == here:
            self._wires[0].trusted.add((here, port))
