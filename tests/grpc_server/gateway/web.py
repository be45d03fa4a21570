"""An HTTP server over tiny models on a loop of its own in another thread, and ways to talk to it."""

import asyncio
import http.client
import importlib.util
import json
import socket
import sys
import threading
import time
from pathlib import Path

import openai

from modelwright.grpc_server.gateway import HttpServer
from modelwright.grpc_server.models.switching import ModelTable
from modelwright.grpc_server.network.access import Access
from modelwright.grpc_server.network.listening import Address


def load(path):
    """Import a file of the tests, which are not a package, once for all."""
    name = f"modelwright_tests_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


Shelf = load(Path(__file__).parent.parent / "conftest.py").Shelf

LIMIT = 64 * 1024


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.005)


class Web:
    def __init__(self, shelf, *addresses, access=None, tls=None, limit=LIMIT, max_requests=256):
        self.table = ModelTable(shelf.registry, shelf.spec, max_requests=max_requests)
        self.tls = tls
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        try:
            self.http = self.run(self._make(access or Access(), limit))
            self.port = self.run(self.http.bind()).port
            self.table.load(addresses)
            self.run(self.table.warm())
            self.run(self.http.start())
        except BaseException:
            self.stop()
            raise

    async def _make(self, access, limit):
        return HttpServer(self.table, Address(host="127.0.0.1", port=0), access, self.tls, limit)

    def run(self, work, timeout=30):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def stop(self, grace=0.0):
        if self.loop.is_closed():
            return
        self.run(self._stop(grace))
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def _stop(self, grace):
        self.http.drain()
        await asyncio.gather(self.table.drain(grace), self.http.stop(grace))
        await self.table.close()

    # Talking

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def openai(self, kind=openai.OpenAI, **options):
        settings = {"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0, "timeout": 20}
        return kind(**{**settings, **options})

    def ask(self, method, path, body=None, **headers):
        """One request on a connection of its own: status, headers, and the JSON of the answer (its text if it is none).

        `body` is sent as JSON, bytes as they are; `content_type=None` leaves that header out.
        """
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None:
            headers.setdefault("content-type", "application/json")
        headers = {name: value for name, value in headers.items() if value is not None}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            return response.status, response.headers, _parsed(response)
        finally:
            connection.close()

    def raw(self, data, *, wait=True):
        """Send bytes as they are; what comes back until the server closes, or the open socket."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        sock.sendall(data)
        if not wait:
            return sock
        with sock:
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def post_bytes(self, path, body, *headers):
        """The bytes of a POST, for `raw`."""
        data = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", *headers]
        return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data

    @property
    def active(self):
        return sum(model.active for model in self.table.models())


def _parsed(response):
    data = response.read()
    if response.headers.get_content_type() == "application/json":
        return json.loads(data)
    return data.decode()


def chat(content="hello", **fields):
    """The body of a chat request."""
    return {"model": "math", "messages": [{"role": "user", "content": content}], **fields}
