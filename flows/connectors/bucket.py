"""A bucket of Google Cloud Storage, opened through a `GcsBucket` block. Keys are relative to the block's folder."""

import datetime as dt
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import requests
from google.api_core.exceptions import (
    Forbidden,
    NotFound,
    PreconditionFailed,
    RetryError,
    Unauthorized,
    from_http_status,
)
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud.storage import Blob
from google.cloud.storage.exceptions import InvalidResponse

from flows.tlc.errors import Gone, MisconfiguredBlock, Overtaken, Unreachable, Vanished

if TYPE_CHECKING:
    from google.cloud.storage import Bucket as StorageBucket
    from prefect_gcp.cloud_storage import GcsBucket

# One request carries this many bytes. With one request per file, the client's timeout of 60 s would break large uploads over
# slow connections.
CHUNK = 8 << 20
_CONNECTIONS = 64  # idle connections that are kept. With the default of ten, urllib3 warns if many months load at once.
_LARGEST_TEXT = 16 << 20  # bytes; a manifest has some thousands
# Seconds to connect, to send a body, and to wait for an answer. A shorter time to connect would also apply to sending.
TIMEOUT = 300.0

NO_ANSWER = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError, RetryError)
"""Errors of Google's clients that may have an upload's address in their text. With the address, anyone can write the upload."""


@dataclass(frozen=True)
class Object:
    """One generation of an object in the bucket. False if the object does not exist: then the generation is 0."""

    key: str
    generation: int = 0
    size: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    crc32c: str = ""

    def __bool__(self) -> bool:
        return self.generation != 0


@contextmanager
def _named() -> Iterator[None]:
    """Convert an upload's errors to the exception types that all other requests raise."""
    try:
        yield
    except InvalidResponse as error:
        status = error.response.status_code
        raise from_http_status(status, str(error), response=error.response) from error  # type: ignore[no-untyped-call]


def root_of(error: Exception) -> Exception:
    """Return the last error that Google's client retried, or `error` itself."""
    while isinstance(error, RetryError) and error.cause:
        error = error.cause
    return error


def silent(error: Exception, service: str = "Google Cloud Storage") -> str:
    """Return which host does not answer and why, without the address."""
    cause = root_of(error)
    request = getattr(cause, "request", None)
    host = urlsplit(request.url or "").netloc if request is not None else service
    advice = "; if it stays so, check this machine's certificates and its proxy"
    return f"{host} does not answer ({type(cause).__name__}{advice if isinstance(cause, requests.exceptions.SSLError) else ''})"


def keep_connections(client: Any) -> None:
    """Let one of Google's clients keep enough idle connections for many months at once."""
    for scheme in ("https://", "http://"):
        client._http.get_adapter(scheme).init_poolmanager(_CONNECTIONS, _CONNECTIONS)


class Bucket:
    """The objects of a bucket by key. Reads and writes are streams; a write can require a generation as its precondition."""

    def __init__(self, block: "GcsBucket") -> None:
        self._folder = block.bucket_folder
        self.block = block
        with self._explained("reached"):
            client = block.gcp_credentials.get_cloud_storage_client()
            keep_connections(client)
        self._bucket: StorageBucket = client.bucket(block.bucket)

    @contextmanager
    def _explained(self, doing: str, key: str = "") -> Iterator[None]:
        """Convert the client's errors.

        No access becomes `MisconfiguredBlock`, a failed precondition `Overtaken`, no answer `Unreachable`.
        """
        name = self.block.bucket
        try:
            with _named():
                yield
        except PreconditionFailed as error:
            raise self.overtaken(key) from error
        except NO_ANSWER as error:
            raise Unreachable(f"bucket {name!r} could not be {doing}: {silent(error)}. Run again.") from None
        except TransportError:  # the token server cannot be reached; the credentials may be right
            raise
        except (Forbidden, Unauthorized, GoogleAuthError) as error:
            raise MisconfiguredBlock(
                f"bucket {name!r} cannot be {doing} with the block's credentials ({type(error).__name__}: {error});"
                " give the service account Storage Object Admin on it, or correct the credentials;"
                " docs/permissions.md has the exact permissions of each flow."
            ) from error

    def overtaken(self, key: str) -> Overtaken:
        """Return the error for a write to `key` that lost against the write of another run."""
        return Overtaken(f"{self.uri(key)} was written by another run meanwhile")

    def _vanished(self, key: str) -> Vanished:
        return Vanished(f"{self.uri(key)} was deleted or replaced during this run. Run again.")

    def check(self) -> None:
        """Raise `MisconfiguredBlock` unless the bucket exists and the credentials may read it."""
        listed = self._bucket.client.list_blobs(self._bucket, prefix=self._folder, max_results=1, timeout=TIMEOUT)
        with self._explained("read"):
            try:
                next(iter(listed), None)
            except NotFound as error:
                raise MisconfiguredBlock(
                    f"bucket {self.block.bucket!r} does not exist; create it, or correct the GcsBucket block"
                    " (python -m blocks.register takes LAKE_BUCKET)."
                ) from error

    def path(self, key: str) -> str:
        """Return the object's full name in the bucket."""
        return f"{self._folder}{key}"

    def uri(self, key: str) -> str:
        """Return the object's `gs://` address."""
        return f"gs://{self.block.bucket}/{self.path(key)}"

    def page(self, key: str) -> str:
        """Return the URL of the object's page in the Google Cloud console."""
        name = quote(f"{self.block.bucket}/{self.path(key)}")
        return f"https://console.cloud.google.com/storage/browser/_details/{name}"

    def location(self) -> str | None:
        """Return the bucket's location, or None if the credentials may not read it."""
        with self._explained("read"):
            try:
                self._bucket.reload(timeout=TIMEOUT)
            except Forbidden:
                return None
        return str(self._bucket.location) if self._bucket.location else None

    def stat(self, key: str) -> Object:
        """Return the newest generation of the object `key`. If it does not exist, return an `Object` that is False."""
        with self._explained("read"):
            blob = self._bucket.get_blob(self.path(key), timeout=TIMEOUT)
        return Object(key) if blob is None else self._object(key, blob)

    def has_generation(self, key: str, generation: int) -> bool:
        """Return whether the object `key` has this generation."""
        return self.stat(key).generation == generation

    def require(self, key: str, generation: int) -> Object:
        """Return the object `key`. Raise `Vanished` unless it has this generation."""
        present = self.stat(key)
        if present.generation != generation:
            raise self._vanished(key)
        return present

    def listing(self, prefix: str) -> dict[str, Object]:
        """Return the objects below a prefix by key, sorted by name."""
        with self._explained("read"):
            blobs = self._bucket.client.list_blobs(self._bucket, prefix=self.path(prefix), timeout=TIMEOUT)
            keys = ((blob.name.removeprefix(self._folder), blob) for blob in blobs)
            return {key: self._object(key, blob) for key, blob in keys}

    def read(self, key: str, generation: int, position: int = 0) -> Iterator[bytes]:
        """Yield the bytes of this generation of an object from `position` on. Raise `Vanished` if it does not exist."""
        blob = self._bucket.blob(self.path(key), generation=generation)
        try:
            with self._explained("read"), blob.open("rb", chunk_size=CHUNK, timeout=TIMEOUT) as file:
                file.seek(position)
                while piece := file.read(CHUNK):
                    yield piece
        except NotFound as error:
            raise self._vanished(key) from error

    def read_text(self, key: str) -> str | None:
        """Return the text of a small object, or None if it does not exist. Raise `ValueError` if it is large, or not text."""
        with self._explained("read"), suppress(NotFound), _SmallFile() as file:
            self._bucket.blob(self.path(key)).download_to_file(file, timeout=TIMEOUT)
            return file.getvalue().decode()
        return None

    def write_text(self, key: str, text: str, replaces: int) -> None:
        """Write a small JSON object. Raise `Overtaken` unless the object is at generation `replaces` (0: absent)."""
        blob = self._bucket.blob(self.path(key))
        with self._explained("written", key):
            blob.upload_from_string(text, "application/json", timeout=TIMEOUT, if_generation_match=replaces)

    def _object(self, key: str, blob: Blob) -> Object:
        return Object(key, int(blob.generation), int(blob.size), dict(blob.metadata or {}), blob.crc32c or "")

    @contextmanager
    def writer(
        self, key: str, metadata: Mapping[str, str] | None = None, replaces: int | None = None
    ) -> Iterator[IO[bytes]]:
        """Yield a file that writes a new object. The object appears when the block ends without an error.

        Raise `Overtaken` if `replaces` is given, and the object `key` is not at that generation (0: absent).
        """
        blob = self._bucket.blob(self.path(key))
        blob.metadata = dict(metadata or {})
        options: dict[str, Any] = {"chunk_size": CHUNK, "timeout": TIMEOUT, "if_generation_match": replaces}
        with self._explained("written", key):
            file: Any = blob.open("wb", ignore_flush=True, **options)
            try:
                with file:
                    yield file
            finally:
                # If an upload fails, and so does cancelling it, the client leaves the buffer open. The garbage collector would
                # close it later, and closing sends the incomplete data as a whole object.
                file._buffer.close()

    def add_metadata(self, present: Object, metadata: Mapping[str, str]) -> Object:
        """Add metadata to an object, and return it. Keep metadata that the server or another tool added.

        Raises:
            Vanished: The object was deleted.
            Overtaken: It was replaced. Some servers answer so for a deleted object, too.
        """
        blob = self._bucket.blob(self.path(present.key))
        blob.metadata = dict(metadata)  # PATCH keeps all other keys
        with self._explained("written", present.key):
            try:
                blob.patch(timeout=TIMEOUT, if_generation_match=present.generation)
            except NotFound as error:
                raise self._vanished(present.key) from error
        return self._object(present.key, blob)

    def written(self, key: str) -> Object:
        """Return an object that was just written. Raise `Gone` if it does not exist."""
        if present := self.stat(key):
            return present
        raise Gone(
            f"{self.uri(key)} was deleted right after it was written; look for a lifecycle rule of the bucket. Run again."
        )

    def copy(
        self, staged: str, generation: int, key: str, replaces: int, metadata: Mapping[str, str], content_type: str
    ) -> Object:
        """Copy a staged object to `key` inside the store, with new metadata, and return the copy.

        Raises:
            Vanished: The staged object does not exist at `generation`.
            Overtaken: The object `key` is not at generation `replaces` (0: absent).
        """
        source = self._bucket.blob(self.path(staged), generation=generation)
        blob = self._bucket.blob(self.path(key))
        blob.content_type = content_type  # a copy with its own metadata needs a content type
        blob.metadata = dict(metadata)
        token: str | None = None
        with self._explained("written", key):
            try:
                while True:  # the store may copy a large object in several requests
                    token, _, _ = blob.rewrite(source, token=token, if_generation_match=replaces, timeout=TIMEOUT)
                    if token is None:
                        return self._object(key, blob)
            except NotFound as error:
                raise Vanished(f"{self.uri(staged)} is no longer in the lake; run again.") from error

    def delete(self, key: str, generation: int | None = None) -> None:
        """Delete an object if it exists. Raise `Overtaken` if `generation` is given and the object has another one."""
        with self._explained("written", key), suppress(NotFound):
            try:
                self._bucket.blob(self.path(key)).delete(timeout=TIMEOUT, if_generation_match=generation)
            except PreconditionFailed:
                if self.stat(key):  # else another run, or an attempt whose answer was lost, deleted it
                    raise

    def delete_older(self, prefixes: Iterable[str], names: re.Pattern[str], before: dt.datetime) -> None:
        """Delete the objects below the prefixes whose whole key matches, and that were last changed before a time."""
        with self._explained("read"):
            for below in map(self.path, prefixes):
                for blob in self._bucket.client.list_blobs(self._bucket, prefix=below, timeout=TIMEOUT):
                    ours = names.fullmatch(blob.name.removeprefix(self._folder))
                    if ours and blob.updated and blob.updated < before:
                        with suppress(NotFound, PreconditionFailed):  # another run deleted or replaced it
                            blob.delete(timeout=TIMEOUT, if_generation_match=blob.generation)

    def download(self, key: str, file: IO[bytes]) -> None:
        """Download the newest generation of an object into a file."""
        with self._explained("read"):
            self._bucket.blob(self.path(key)).download_to_file(file, timeout=TIMEOUT)

    def ranges(self, present: Object, on_read: Callable[[int], None] = lambda size: None) -> io.RawIOBase:
        """Return this generation of an object as a file. It fetches only the ranges that are read.

        `on_read` is called after each request with the number of bytes that it fetched.
        """
        blob = self._bucket.blob(self.path(present.key), generation=present.generation)

        def fetch(start: int, stop: int) -> bytes:
            with self._explained("read"):
                try:
                    data = bytes(blob.download_as_bytes(start=start, end=stop - 1, checksum=None, timeout=TIMEOUT))
                except NotFound as error:
                    raise Vanished(
                        f"{self.uri(present.key)} was replaced while it was being read. Run again."
                    ) from error
            on_read(len(data))
            return data

        return _Ranges(present.size, fetch)


class _SmallFile(io.BytesIO):
    """A file in memory for an object that another program may have replaced by a large one."""

    def write(self, data: Any, /) -> int:
        if self.tell() + len(data) > _LARGEST_TEXT:
            raise ValueError(f"an object has more than {_LARGEST_TEXT:,} bytes")
        return super().write(data)


class _Ranges(io.RawIOBase):
    """File that turns each read into one HTTP range request. Parquet's reader reads whole columns, and each of them once."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch, self._at = size, fetch, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._at + size)
        data = self._fetch(self._at, stop) if stop > self._at else b""
        self._at += len(data)
        return data
