"""A run may read public addresses, the operator's addresses, and what the operator allows in the environment."""

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.connectors import guard, request, web
from flows.connectors.guard import require_allowed
from flows.connectors.web import Download, look_up, source_of, zone_file
from flows.tlc.errors import MisconfiguredBlock, SourceNotAllowed, Unreachable, UnreadableFile
from flows.tlc.sources import Source
from flows.tlc.trips import TripMonth
from local.servers.site import Site

MONTH = TripMonth("green", 2021, 1)
NAME = "green_tripdata_2021-01.parquet"
OFFICIAL = "/trip-data/{color}_tripdata_{year}-{month:02d}.parquet"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Site(tmp_path / "site", rows=200) as site:
        yield site


@pytest.fixture(autouse=True)
def deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow nothing beyond the defaults, as for a deployment, and make waits return at once."""
    for name in (guard.ALLOW, *guard.OPERATORS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(request.time, "sleep", lambda seconds: None)


def port(site: Site) -> int:
    return int(site.url.rpartition(":")[2])


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "LOCALHOST", "localhost.", "any.localhost", "127.0.0.1", "127.1", "127.0.0.1.", "2130706433", "0x7f.1",
        "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "[::]", "[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]",  # noqa: S104
        "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "１２７.0.0.1", "127。0。0。1", "ｌocalhost",
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "[fc00::1]", "[fe80::1]", "[fec0::1]", "[ff02::1]", "[::ffff:10.0.0.1]", "[64:ff9b::a00:1]",
    ],
)  # fmt: skip
def test_a_private_address_in_any_notation_is_refused_unless_the_operator_allows_it(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = f"http://{host}:4200/{{year}}-{{month:02d}}.csv"
    with pytest.raises(SourceNotAllowed, match=r"the operator sets TRIPS_ALLOW_SOURCES=private"):
        source_of(template)
    with pytest.raises(SourceNotAllowed):
        zone_file(f"http://{host}:4200/zones.csv")
    monkeypatch.setenv(guard.ALLOW, "private")
    source_of(template)


@pytest.mark.parametrize(
    "host",
    ["169.254.169.254", "2852039166", "0xa9fea9fe", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "100.100.100.200",
     "168.63.129.16", "169.254.170.2"],
)  # fmt: skip
def test_a_clouds_metadata_is_never_read(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(guard.ALLOW, "file,private")
    with pytest.raises(SourceNotAllowed, match="metadata service, which is never read"):
        source_of(f"http://{host}/latest/{{year}}-{{month}}.csv")


@pytest.mark.parametrize("host", ["d37ci6vzurychx.cloudfront.net", "8.8.8.8", "[2606:4700::1111]", "134744072"])
def test_a_public_address_needs_no_permission(host: str) -> None:
    source_of(f"https://{host}/{{year}}-{{month}}.csv")


def test_a_local_file_is_refused_unless_the_operator_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "2021-01.csv").write_text("root:x:0\n")
    template = f"file://{tmp_path}/{{year}}-{{month:02d}}.csv"
    with pytest.raises(SourceNotAllowed, match=r"is a local file.*the operator sets TRIPS_ALLOW_SOURCES=file"):
        source_of(template)
    with pytest.raises(SourceNotAllowed):
        look_up(Source(template), MONTH)
    with pytest.raises(SourceNotAllowed):
        zone_file(f"file://{tmp_path}/2021-01.csv")
    monkeypatch.setenv(guard.ALLOW, " private , file ")
    assert look_up(source_of(template), MONTH).size == 9


def test_a_file_that_was_looked_up_with_permission_is_not_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "2021-01.csv").write_text("root:x:0\n")
    with monkeypatch.context() as patch:
        patch.setenv(guard.ALLOW, "file")
        found = look_up(Source(f"file://{tmp_path}/{{year}}-{{month:02d}}.csv"), MONTH)
    with pytest.raises(SourceNotAllowed):
        list(Download(found))


def test_only_the_addresses_in_the_operators_variables_are_allowed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLC_OFFICIAL_URL", site.url + OFFICIAL)
    assert b"".join(Download(look_up(source_of("official"), MONTH))) == site.file(NAME).read_bytes()
    source_of(f"{site.url}/legacy/{{color}}_tripdata_{{year}}-{{month:02d}}.csv")  # another folder of the same server
    with pytest.raises(SourceNotAllowed):
        source_of("http://127.0.0.1:4200/api/{year}-{month}.csv")
    with pytest.raises(SourceNotAllowed):
        source_of(f"http://2130706433:{port(site)}{OFFICIAL}")
    monkeypatch.setenv("TLC_MIRROR_URL", f"file://{tmp_path}/{{color}}-{{year}}-{{month:02d}}.csv")
    source_of("mirror")
    require_allowed(f"file://{tmp_path}/green-2021-01.csv")
    for other in ("/etc/passwd", f"{tmp_path}/green-2021-01.csv.gz", f"{tmp_path}/../x-2021-01.csv"):
        with pytest.raises(SourceNotAllowed):
            require_allowed(f"file://{other}")


class Resolver:
    """Replaces DNS: each name resolves to the given addresses, one answer per look-up. The last answer repeats."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: list[str]) -> None:
        self.answers, self.real = answers, socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)

    def look_up(self, host: str, port: int, *arguments: Any, **named: Any) -> Any:
        name = host.partition(".")[0]
        if name not in self.answers:
            ipaddress.ip_address(host)
            return self.real(host, port, *arguments, **named)
        answers = self.answers[name]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in answer.split()]


@pytest.mark.parametrize("addresses", ["127.0.0.1", "8.8.8.8 127.0.0.1", "10.1.2.3"])
def test_a_name_that_resolves_to_a_private_address_is_refused_before_any_connection(
    site: Site, addresses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Resolver(monkeypatch, inside=[addresses])
    with pytest.raises(SourceNotAllowed, match=r"http://inside.example.com:\d+ is at a private or local address"):
        look_up(source_of(f"http://inside.example.com:{port(site)}{OFFICIAL}"), MONTH)
    assert site.requests == []


def test_the_connection_goes_to_the_address_that_was_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, rebound=["192.0.2.1", "127.0.0.1"])
    connected: list[str] = []

    def refuse(self: object, host: str, *arguments: Any, **named: Any) -> None:
        connected.append(host)
        raise guard.httpcore.ConnectError("not here")

    monkeypatch.setattr(guard.httpcore.SyncBackend, "connect_tcp", refuse)
    monkeypatch.setattr(guard, "_is_public", lambda address: str(address) == "192.0.2.1")
    monkeypatch.setattr(web, "ATTEMPTS", 1)
    with pytest.raises((Unreachable, SourceNotAllowed)):
        look_up(source_of(f"http://rebound.example.com:{port(site)}{OFFICIAL}"), MONTH)
    assert connected == ["192.0.2.1"]
    assert resolver.answers["rebound"] == ["127.0.0.1"]


@pytest.mark.parametrize(
    "location",
    ["http://localhost:{port}/trip-data/" + NAME, "http://2130706433:{port}/trip-data/" + NAME,
     "//127.1:{port}/trip-data/" + NAME, "http://127.0.0.1:1/x.parquet", "http://[::ffff:127.0.0.1]:{port}/x.parquet"],
)  # fmt: skip
def test_a_redirect_to_a_private_address_is_refused(site: Site, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The site acts as a public server: its name is trusted, like TLC's.
    Resolver(monkeypatch, public=["127.0.0.1"])
    monkeypatch.setenv("TLC_ZONES_URL", f"http://public.example.com:{port(site)}/zones.csv")
    site.fault(f"/trip-data/{NAME}", status=302, headers={"Location": location.format(port=port(site))}, times=None)
    with pytest.raises(SourceNotAllowed):
        look_up(source_of(f"http://public.example.com:{port(site)}{OFFICIAL}"), MONTH)
    assert [request.method for request in site.requests] == ["HEAD"]


def test_the_operators_server_may_redirect_to_another_port_of_its_host(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Site(tmp_path / "other", rows=200) as other:
        monkeypatch.setenv("TLC_OFFICIAL_URL", site.url + OFFICIAL)
        target = f"{other.url}/trip-data/{NAME}"
        site.fault(f"/trip-data/{NAME}", status=302, headers={"Location": target}, times=None)
        assert b"".join(Download(look_up(source_of("official"), MONTH))) == other.file(NAME).read_bytes()


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "gopher://127.0.0.1/", "http://user:hunter2@127.0.0.1/x", "http://user:hunter2/x@h/",
     "http://user:1/hunter2@h/", "http://[hunter2@h/", "http://h/\\..\\hunter2@x", "http:hunter2@h", "http://h:hunter2/"],
)  # fmt: skip
def test_a_redirect_to_an_invalid_source_address_is_refused_and_not_quoted(
    site: Site, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLC_OFFICIAL_URL", site.url + OFFICIAL)
    site.fault(f"/trip-data/{NAME}", status=302, headers={"Location": location}, times=None)
    with pytest.raises((UnreadableFile, SourceNotAllowed)) as refused:
        look_up(source_of("official"), MONTH)
    assert "redirects to an address that is refused" in str(refused.value)
    assert "hunter2" not in str(refused.value) or "@" not in location


@pytest.mark.parametrize("proxy", ["http://user:hunter2/x@h", "nonsense://user:hunter2@h"])
def test_the_error_for_an_invalid_proxy_names_only_its_variable(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, proxy)
    with pytest.raises(MisconfiguredBlock, match="a proxy in HTTP_PROXY") as refused:
        look_up(source_of("http://8.8.8.8/{year}-{month}.csv"), MONTH)
    assert "hunter2" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_a_proxy_gets_requests_for_public_addresses_and_none_for_private_ones(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("http_proxy", f"http://user:hunter2@127.0.0.1:{port(site)}")
    site.fault("*", status=407, times=None)  # the site acts as a proxy
    with pytest.raises(UnreadableFile) as refused:
        look_up(source_of("http://8.8.8.8/{year}-{month}.csv"), MONTH)
    assert "HTTP 407" in str(refused.value)
    assert "hunter2" not in str(refused.value)
    site.forget_requests()
    with pytest.raises(SourceNotAllowed):
        look_up(Source("http://127.0.0.1:4200/{year}-{month}.csv"), MONTH)
    assert site.requests == []
