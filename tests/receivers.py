"""Run local receivers of notifications, which record each message."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

# Variables that `blocks.register` reads for each service. The values give access to nothing.
KEY = "0123456789abcdef" * 2
VALUES = {
    "slack-webhook": {"NOTIFY_SLACK_URL": f"https://hooks.slack.com/services/T00000000/B00000000/{KEY[:24]}"},
    "ms-teams-webhook": {
        "NOTIFY_TEAMS_URL": f"https://one.logic.azure.com:443/workflows/{KEY}/triggers/manual/paths/invoke"
        f"?api-version=2016-06-01&sp=%2Ftriggers%2Fmanual%2Frun&sv=1.0&sig={KEY}"
    },
    "twilio-sms": {
        "NOTIFY_TWILIO_SID": f"AC{KEY}",
        "NOTIFY_TWILIO_TOKEN": KEY,
        "NOTIFY_TWILIO_FROM": "+15550100000",
        "NOTIFY_TWILIO_TO": "+15550100001, +15550100002",
    },
    "opsgenie-webhook": {"NOTIFY_OPSGENIE_KEY": KEY, "NOTIFY_OPSGENIE_TEAMS": "data"},
}


@dataclass(frozen=True)
class Message:
    """One received POST request or e-mail."""

    path: str
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body)


@dataclass
class Receiver:
    """The port of a receiver and its messages. It answers with the status `answer` and the body `reply` after `delay` seconds."""

    port: int
    answer: int = 200
    delay: float = 0.0
    reply: str = "ok"
    messages: list[Message] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for(
        self, count: int, seconds: float = 300, of: Callable[[Message], bool] = lambda _: True
    ) -> list[Message]:
        """Wait for `count` messages for which `of` returns true, at most `seconds`. Return all such messages so far."""
        until = time.monotonic() + seconds
        while len(found := [m for m in self.messages if of(m)]) < count and time.monotonic() < until:
            time.sleep(0.1)
        return found


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a web server that accepts any POST."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            here.messages.append(Message(self.path, dict(self.headers), body))
            time.sleep(here.delay)
            self.send_response(here.answer)
            self.send_header("Content-Length", str(len(here.reply)))
            self.end_headers()
            self.wfile.write(here.reply.encode())

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """Ignore clients that disconnect before the answer."""

    with Server(("127.0.0.1", 0), Handler) as server:
        here = Receiver(server.server_port)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield here
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def web_page() -> Iterator[str]:
    """Run a web server that answers every request with a page, as Prefect's UI does. Yield its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            page = b"<!DOCTYPE html><title>Prefect</title>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def mailbox() -> Iterator[Receiver]:
    """Run a mail server that accepts any e-mail. The body of a message is the whole e-mail."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                command = line[:4].upper()
                if command == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    mail = b"".join(iter(self.rfile.readline, b".\r\n"))
                    here.messages.append(Message("", {}, mail.decode()))
                self.wfile.write(b"221 bye\r\n" if command == b"QUIT" else b"250 fine\r\n")
                if command == b"QUIT":
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        here = Receiver(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield here
        finally:
            server.shutdown()
            thread.join()
