"""Cloud Storage on this machine: the part of its JSON API that gcsfs, TensorStore and Orbax speak."""

import base64
import hashlib
import http.server
import itertools
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple


class Stored(NamedTuple):
    """An object of a bucket: it is replaced whole, and its generation grows."""

    data: bytes
    generation: int


class BucketServer:
    """Serves one bucket from memory, in threads, while it is a context.

    Args:
      fails_every: so many requests until one is answered with 503; 0: none.
      page: objects and prefixes in an answer to a listing, at most.
    """

    def __init__(self, bucket: str = "bucket", fails_every: int = 0, page: int = 20) -> None:
        self.bucket, self.fails_every, self.page = bucket, fails_every, page
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], bytes]] = {}  # begun: name, query, so far
        self.requests = self.failed = 0
        self.planned: tuple[int, Callable[[], None]] = 0, lambda: None  # at which request, and what
        self.lock, self.generations = threading.Lock(), itertools.count(1)

    def __enter__(self) -> "BucketServer":
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def handle_request(self):
                body = _body(self)
                with server.lock:
                    try:
                        code, headers, answer = server.answer(self, body)
                    except _Refused as refused:
                        code, headers, answer = refused.args[0], {}, b'{"error": {"message": "no"}}'
                try:
                    _send(self, code, headers, answer)
                except OSError:  # who asked was killed
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = handle_request

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead all libraries here, without credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # or TensorStore looks for the metadata of a VM
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # which asks Google by gRPC
        }

    def after(self, requests: int, call: Callable[[], None]) -> None:
        """Calls a function when so many requests more have come, before the last is answered."""
        with self.lock:
            self.planned = self.requests + requests, call

    def answer(self, handler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for a request."""
        self.requests += 1
        if self.requests == self.planned[0]:
            self.planned[1]()
        if self.fails_every and self.requests % self.fails_every == 0:
            self.failed += 1
            raise _Refused(503)
        url = urllib.parse.urlsplit(handler.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        path = re.sub("^(/upload|/download)?/storage/v1/b/", "", url.path)
        bucket, _, rest = path.partition("/")
        if bucket != self.bucket:
            raise _Refused(404)
        what = f"{handler.command} {rest.partition('/')[0]}"
        name = urllib.parse.unquote(rest.partition("/")[2])
        if url.path.startswith("/upload/"):
            return self._upload(handler, query, body)
        if rest == "":
            return _json({"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "US"})
        if what == "GET o":
            return self._get(handler, name, query) if name else self._list(query)
        if what == "DELETE o":
            self._check(name, query)
            if self.objects.pop(name, None) is None:
                raise _Refused(404)
            return 204, {}, b""
        if what == "POST o" and "/rewriteTo/" in rest:
            source, target = map(urllib.parse.unquote, rest[2:].split(f"/rewriteTo/b/{bucket}/o/"))
            if source not in self.objects:
                raise _Refused(404)
            data = self.objects[source].data
            written = {"totalBytesRewritten": str(len(data)), "objectSize": str(len(data))}
            described = self._write(target, query, data)
            return _json({**written, "done": True, "resource": described})
        raise _Refused(501)

    def _upload(self, handler, query: dict[str, str], body: bytes):
        kind, name = query.get("uploadType"), query.get("name", "")
        if "upload_id" in query:
            return self._continue(query["upload_id"], handler.headers["Content-Range"], body)
        if kind == "media":
            return _json(self._write(name, query, body))
        if kind == "multipart":
            described, data = _parts(handler.headers["Content-Type"], body)
            return _json(self._write(json.loads(described).get("name", name), query, data))
        if kind == "resumable":
            number = str(next(self.generations))
            self.uploads[number] = json.loads(body or b"{}").get("name", name), query, b""
            at = f"/upload/storage/v1/b/{self.bucket}/o?uploadType=resumable&upload_id={number}"
            return 200, {"Location": self.url + at}, b""
        raise _Refused(501)

    def _continue(self, number: str, content_range: str, body: bytes):
        """The next bytes of a resumable upload; the object is there once all came."""
        name, query, data = self.uploads[number]
        span, _, total = content_range.removeprefix("bytes ").partition("/")
        if span != "*":
            data = data[: int(span.partition("-")[0])] + body
        self.uploads[number] = name, query, data
        if total == "*" or len(data) < int(total):
            return 308, {"Range": f"bytes=0-{len(data) - 1}"} if data else {}, b""
        del self.uploads[number]
        return _json(self._write(name, query, data))

    def _check(self, name: str, query: dict[str, str]) -> None:
        """Raises if an object is not of the generation that is asked for; 0: there is none."""
        generation = self.objects[name].generation if name in self.objects else 0
        if int(query.get("ifGenerationMatch", generation)) != generation:
            raise _Refused(412)
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            raise _Refused(304)

    def _write(self, name: str, query: dict[str, str], data: bytes) -> dict[str, str]:
        self._check(name, query)
        self.objects[name] = Stored(data, next(self.generations))
        return self._describe(name)

    def _get(self, handler, name: str, query: dict[str, str]):
        if name not in self.objects:
            raise _Refused(404)
        self._check(name, query)
        if query.get("alt") != "media":
            return _json(self._describe(name))
        data, generation = self.objects[name]
        headers = {"x-goog-generation": str(generation)}
        if (span := handler.headers.get("Range")) is None:
            return 200, headers, data
        first, _, last = span.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            raise _Refused(416)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return 206, headers, data[start:end]

    def _list(self, query: dict[str, str]):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        found: dict[str, bool] = {}  # name -> whether it is a prefix of several
        for name in sorted(self.objects):
            if name.startswith(prefix) and name >= query.get("startOffset", ""):
                inner, cut, _ = name[len(prefix) :].partition(delimiter or "\0")
                found[prefix + inner + cut] = bool(cut)
        names = [name for name in found if name > query.get("pageToken", "")]
        if end := query.get("endOffset"):
            names = [name for name in names if name < end]
        page = names[: min(self.page, int(query.get("maxResults", self.page)))]
        answer = {
            "kind": "storage#objects",
            "items": [self._describe(name) for name in page if not found[name]],
            "prefixes": [name for name in page if found[name]],
        }
        if len(page) < len(names):
            answer["nextPageToken"] = page[-1]
        return _json(answer)

    def _describe(self, name: str) -> dict[str, str]:
        data, generation = self.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(data)),
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
        }


class _Refused(Exception):
    """Its argument is the status to answer with."""


def _body(handler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    parts = []
    while size := int(handler.rfile.readline(), 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)


def _parts(content_type: str, body: bytes) -> tuple[bytes, bytes]:
    """The two parts of a multipart body: what describes an object, and its bytes."""
    boundary = b"--" + re.search('boundary="?([^";]+)', content_type)[1].encode()
    _, described, rest = body.split(boundary, 2)
    end = b"\r\n" if rest.startswith(b"\r\n") else b"\n"
    data = rest[: rest.rindex(end + boundary)]
    return described.split(end * 2, 1)[1], data.split(end * 2, 1)[1]


def _json(value) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _send(handler, code: int, headers: dict[str, str], body: bytes) -> None:
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name, value)
    if code not in (204, 304):
        handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    if code not in (204, 304):
        handler.wfile.write(body)
    handler.wfile.flush()
