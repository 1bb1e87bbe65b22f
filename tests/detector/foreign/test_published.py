"""Published detectors from a server on this machine: checksums, broken connections, and where the file is kept."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator

import pytest
import torch

import detector
from detector import transfer
from detector.errors import InputError, UnreachableError
from detector.foreign import published
from detector.foreign.published import PUBLISHED, Published, fetch_published, find_published
from tests.detector.foreign.networks import MMDetection

NAME = "mmdet:atss_r50_fpn_1x_coco"


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content``; after ``break_after`` bytes the next answer stops."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.break_after: list[int] = []
        self.seen: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.seen.append(asked)
        if self.path != "/file":
            name = self.path.rpartition("/")[2]
            if not name.startswith("atss"):
                self.send_error(404)
                return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        whole = self.server.content
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        rest = whole[start:]
        self.wfile.write(rest[: self.server.break_after.pop(0)] if self.server.break_after else rest)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("published") / "file.pth"
    torch.save({"state_dict": MMDetection("atss").state_dict()}, path)
    return path.read_bytes()


@pytest.fixture
def server(content, tmp_path, monkeypatch) -> Iterator[Server]:
    running = Server(content)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    digits = hashlib.sha256(content).hexdigest()[:8]
    url = f"http://127.0.0.1:{running.server_port}/atss-{digits}.pth"
    monkeypatch.setitem(PUBLISHED, NAME, Published(url, 39.4))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(transfer.time, "sleep", lambda seconds: None)
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def kept(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "hub" / "checkpoints").iterdir())


def test_a_published_detector_is_fetched_once_and_kept_where_torch_keeps_its_own(server, tmp_path):
    first = detector.load(NAME, device="cpu")
    assert (first.config.head.name, first.config.backbone, len(first.categories)) == ("atss", "r50", 80)
    detector.load(NAME, device="cpu")
    assert server.seen == [None]
    assert kept(tmp_path) == [PUBLISHED[NAME].file]


def test_a_broken_connection_is_taken_up_where_it_stopped(server, tmp_path, content):
    server.break_after = [1_000_000, 2_000_000]
    assert fetch_published(NAME).read_bytes() == content
    assert server.seen == [None, "bytes=1000000-", "bytes=3000000-"]
    assert kept(tmp_path) == [PUBLISHED[NAME].file]


def test_another_checksum_is_refused_and_leaves_nothing(server, tmp_path):
    server.content = server.content[:-1] + b"x"
    with pytest.raises(
        InputError, match=r"came with SHA-256 \w{8} instead of \w{8} and was deleted; run the command ag"
    ):
        detector.load(NAME, device="cpu")
    assert kept(tmp_path) == []


def test_a_kept_file_that_was_changed_is_refused(server):
    path = fetch_published(NAME)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="does not have the SHA-256 that its name says; delete it"):
        detector.load(NAME, device="cpu")


def test_a_server_without_the_file_says_where_to_put_it(server, monkeypatch, tmp_path):
    url = f"http://127.0.0.1:{server.server_port}/other-01234567.pth"
    monkeypatch.setitem(PUBLISHED, NAME, Published(url, 39.4))
    with pytest.raises(UnreachableError, match=r"404 .*; put other-01234567\.pth into .*hub/checkpoints yourself"):
        detector.load(NAME, device="cpu")


def test_names(monkeypatch):
    new, old = "mmdet:vfnet_x101-64x4d-mdconv-c3-c5_fpn_ms-2x_coco", "mmdet:vfnet_r50_fpn_mstrain_2x_coco"
    assert find_published(new).file == "vfnet_x101_64x4d_fpn_mdconv_c3-c5_mstrain_2x_coco_20201027pth-b5f6da5e.pth"
    assert find_published("mmdet:vfnet_r50_fpn_ms-2x_coco") == find_published(old)
    with pytest.raises(InputError, match="did you mean mmdet:atss_r50_fpn_1x_coco"):
        find_published("mmdet:atss_r50_fpn_1x")
    with pytest.raises(InputError, match="links of the README of implus/GFocalV2, and give its path"):
        detector.load("gflv2:r50")
    with pytest.raises(InputError, match="there is no published detector torchvision:x"):
        detector.load("torchvision:x")


def test_every_name_has_an_address_with_a_checksum():
    for name, found in PUBLISHED.items():
        assert found.url.startswith((published.OPENMMLAB, published.PYTORCH)), name
        assert len(found.checksum.value) == 8
        assert 35 < found.ap < 55
