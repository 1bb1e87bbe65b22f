"""Real servers on this machine: MLflow, PostgreSQL, one that speaks S3; and a proxy that fails as networks do."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

STARTUP_S = 120.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until_up(url: str, process: subprocess.Popen, log: Path) -> None:
    """Waits for an answer of any kind."""
    until = time.monotonic() + STARTUP_S
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{url} did not come up: {log.read_text()[-2000:]}")


@contextlib.contextmanager
def running(command: list[str], url: str, log: Path, **environment: str) -> Iterator[None]:
    """``command`` as a process group of its own, once it answers at ``url``; ended by its id."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | environment, start_new_session=True
        )
    try:
        wait_until_up(url, process, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def mlflow_server(folder: Path, *, store: str | None = None, artifacts: str | None = None, **environment: str):
    """The address of a server over ``store`` (a database in ``folder``) and ``artifacts`` (a folder there)."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store or f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", artifacts or str(folder / "server-artifacts")]
    url = f"http://127.0.0.1:{port}"
    with running(command, f"{url}/health", folder / "server.log", MLFLOW_DISABLE_TELEMETRY="true", **environment):
        yield url


S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment that leads to a server which speaks S3, with a bucket called detsweep."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed: pip install 'detsweep[s3]'")
    pytest.importorskip("moto.server", reason="moto is not installed: pip install 'detsweep[dev]'")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = S3_ENVIRONMENT | {"AWS_ENDPOINT_URL": url, "XDG_CACHE_HOME": str(folder / "cache")}
    with running(command, url, folder / "s3.log"):
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="detsweep")
        yield environment


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The address of a database of its own; skipped where PostgreSQL isn't installed."""
    places = [os.environ.get("PATH", ""), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]
    path = os.pathsep.join(places)
    initdb, server, createdb = (shutil.which(name, path=path) for name in ("initdb", "postgres", "createdb"))
    if not (initdb and server and createdb):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install 'detsweep[postgres]'")
    # PostgreSQL refuses to be run by root.
    user = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="detsweep-postgres-"))
    port = free_port()
    try:
        if user:
            shutil.chown(folder, **user)
        data = folder / "data"
        options: dict[str, Any] = {"cwd": folder, **user}
        command = [initdb, "-D", str(data), "-U", "detsweep", "--auth", "trust", "--no-sync"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **options)
        command = [server, "-D", str(data), "-p", str(port), "-k", str(folder), "-h", "127.0.0.1", "-F"]
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        try:
            create = [createdb, "-h", "127.0.0.1", "-p", str(port), "-U", "detsweep", "mlflow"]
            until = time.monotonic() + STARTUP_S
            while subprocess.run(create, stderr=subprocess.DEVNULL).returncode:
                assert time.monotonic() < until, (folder / "server.log").read_text()
                time.sleep(0.2)
            yield f"postgresql+psycopg2://detsweep@127.0.0.1:{port}/mlflow"
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class FlakyProxy:
    """Passes requests on to ``target``, or fails as ``mode`` says; a context manager.

    "up"; "500", "503", "429" (the server never sees the request); "late 500" and "cut" (it does what is asked, but the
    answer is 500, or the connection ends); "slow" (the answer takes ``delay`` seconds). A list of them is gone through
    request by request, again and again. ``away`` closes the port, ``back`` opens it.
    """

    def __init__(self, target: str) -> None:
        self._host, self._port = target.removeprefix("http://").split(":")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.delay = 3.0
        self.failed = 0
        self._modes: Iterator[str] = itertools.repeat("up")
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> FlakyProxy:
        self.back()
        return self

    def __exit__(self, *_: object) -> None:
        self.away()

    def mode(self, *modes: str) -> None:
        """From now on."""
        with self._lock:
            self._modes = itertools.cycle(modes)

    def away(self) -> None:
        """Connections are refused."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def back(self) -> None:
        """Connections are taken."""
        if self._server is None:
            self._server = _Listener(("127.0.0.1", self.port), self._handler())
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def away_for(self, seconds: float) -> threading.Timer:
        """Refuses connections for that long."""
        self.away()
        timer = threading.Timer(seconds, self.back)
        timer.start()
        return timer

    def _next(self) -> str:
        with self._lock:
            mode = next(self._modes)
            self.failed += mode not in ("up", "slow")
            return mode

    def _pass_on(self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes):
        connection = http.client.HTTPConnection(self._host, int(self._port), timeout=60)
        try:
            own = ("host", "expect", "transfer-encoding", "content-length")
            connection.request(method, path, body, {key: value for key, value in headers if key.lower() not in own})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self._body()
                mode = proxy._next()
                if mode in ("500", "503", "429"):
                    self._answer(int(mode), [], b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "not now"}')
                    return
                status, headers, content = proxy._pass_on(self.command, self.path, self.headers.items(), body)
                if mode == "late 500":
                    status, headers, content = 500, [], b"it was done, but nobody says so"
                if mode == "cut":
                    self.close_connection = True
                    return
                if mode == "slow":
                    time.sleep(proxy.delay)
                self._answer(status, headers, content)

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = b""
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                while self.rfile.readline().strip():  # what follows the last one
                    pass
                return body

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                with contextlib.suppress(OSError):  # who asked may have gone
                    self.send_response(status)
                    length = str(len(content))
                    if self.command == "HEAD":  # what a GET would have
                        length = next((value for key, value in headers if key.lower() == "content-length"), length)
                    for key, value in headers:
                        if key.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                            self.send_header(key, value)
                    self.send_header("Content-Length", length)
                    self.end_headers()
                    self.wfile.write(b"" if self.command == "HEAD" else content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


class _Listener(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
