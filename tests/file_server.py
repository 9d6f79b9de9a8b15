"""A small HTTP server on this machine with files in memory, that can be told to misbehave."""

import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from conftest import HANG


class FileServer:
    """Serves `files` (name -> bytes), and keeps what was asked for and how many bytes were sent.

    ranges: True answers 206, False ignores ranges, a number is the status of the answer to any range. cut: bytes of
    a body after which the connection is closed; gate: an event that is waited for there instead. headers: said
    instead of the true ones. status: answers everything so. lengths: whether sizes are said.
    """

    def __init__(self, files):
        self.files = files
        self.ranges, self.cut, self.gate, self.headers, self.status, self.lengths = True, None, None, {}, None, True
        self.asked, self.sent = [], 0

    def __enter__(self):
        server = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.http.daemon_threads = True
        self.http.block_on_close = False
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.address = f"http://127.0.0.1:{self.http.server_port}/data"
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join(HANG)

    def answer(self, request):
        name, wanted = request.path.removeprefix("/data/"), request.headers.get("Range")
        self.asked.append((name, wanted))
        if self.status or name not in self.files:
            request.send_error(self.status or 404)
            return
        content, first = self.files[name], int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        if wanted and self.ranges not in (True, False):
            request.send_response(self.ranges)
            request.end_headers()
            return
        partial = wanted and self.ranges
        body = content[first:] if partial else content
        headers = {"Content-Length": str(len(body))} if self.lengths else {}
        if partial:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        request.send_response(206 if partial else 200)
        for key, value in {**headers, **self.headers}.items():
            if value is not None:
                request.send_header(key, value)
        request.end_headers()
        cut = len(body) if self.cut is None else self.cut
        self.send(request, body[:cut])
        if self.gate is not None:
            self.gate.wait(HANG)
            self.send(request, body[cut:])

    def send(self, request, content):
        try:
            request.wfile.write(content)
            self.sent += len(content)
        except OSError:  # the other end has gone
            pass


@contextmanager
def closed_port():
    """An address at which nothing listens: bound, so that no other takes it, but never listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"
