"""Downloads from a server on this machine that breaks off, changes its mind, or sends something else."""

from __future__ import annotations

import hashlib
import http.server
import io
import socket
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.data.download import COCO2017, Archive, download
from detector.errors import InputError, UnreachableError


def zipped(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


PICTURES = zipped({"val2017/1.jpg": b"one" * 20_000, "val2017/2.jpg": b"two" * 20_000})
LISTS = zipped({"annotations/instances_val2017.json": b"{}", "annotations/captions_val2017.json": b"{}"})


def archives(pictures: bytes = PICTURES) -> list[Archive]:
    lists, listed = hashlib.md5(LISTS).hexdigest(), ("annotations/instances_val2017.json",)
    return [
        Archive("annotations", "annotations/lists.zip", lists, listed),
        Archive("val", "zips/val2017.zip", hashlib.md5(pictures).hexdigest(), ("val2017/",)),
    ]


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; ``break_after`` bytes the next answer stops, ``ranges`` says whether it continues files."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/zips/val2017.zip": PICTURES, "/annotations/lists.zip": LISTS}
        self.break_after: list[int] = []
        self.errors: list[int] = []
        self.ranges = True
        self.tag = '"first"'
        self.seen: list[tuple[str, str | None, int]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        asked = self.headers.get("Range")
        if content is None or self.server.errors:
            code = self.server.errors.pop(0) if self.server.errors else 404
            self.server.seen.append((self.path, asked, code))
            self.send_error(code)
            return
        start = 0
        if asked and self.server.ranges and self.headers.get("If-Range", self.server.tag) == self.server.tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
        code = 416 if start >= len(content) else 206 if start else 200
        self.server.seen.append((self.path, asked, code))
        self.send_response(code)
        if code == 416:
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", self.server.tag)
        self.end_headers()
        rest = content[start:]
        if self.server.break_after:
            rest = rest[: self.server.break_after.pop(0)]
        self.wfile.write(rest)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def fetch(root: Path, server: Server, **options) -> Path:
    options = {"archives": archives(), "parts": ("val",), "attempts": 3, "pause_s": 0.01, **options}
    return download(root, base_url=server.url, **options)


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_login_in_the_address_is_shown_nowhere(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    address = server.url.replace("://", "://me:secret@")
    server.errors = [503]
    download(tmp_path, base_url=address, archives=archives(), parts=("val",), attempts=3, pause_s=0.01)
    assert f"{server.url}/zips/val2017.zip: the server answers 503" in (said := capsys.readouterr().err)
    with pytest.raises(UnreachableError, match="404") as raised:
        download(tmp_path / "x", base_url=f"{address}/x", archives=archives(), parts=("val",), attempts=1)
    assert "secret" not in said + str(raised.value)


def test_chosen_parts_are_unpacked_and_only_what_is_needed_of_them(tmp_path, server):
    fetch(tmp_path, server, parts=("val", "annotations"))
    assert names(tmp_path) == ["annotations/instances_val2017.json", "val2017/1.jpg", "val2017/2.jpg"]
    assert (tmp_path / "val2017" / "2.jpg").read_bytes() == b"two" * 20_000


def test_what_is_there_is_not_fetched_again(tmp_path, server):
    fetch(tmp_path, server)
    server.seen.clear()
    fetch(tmp_path, server)
    assert server.seen == []


def test_a_broken_connection_is_taken_up_where_it_broke(tmp_path, server):
    server.break_after = [50_000, 30_000]
    fetch(tmp_path, server)
    assert [(asked, code) for _, asked, code in server.seen] == [
        (None, 200),
        ("bytes=50000-", 206),
        ("bytes=80000-", 206),
    ]
    assert names(tmp_path) == ["val2017/1.jpg", "val2017/2.jpg"]


def test_an_interrupted_command_goes_on_at_its_next_call(tmp_path, server):
    server.break_after = [50_000]
    server.errors = []
    with pytest.raises(UnreachableError, match=r"goes on from 50000 bytes"):
        fetch(tmp_path, server, attempts=1)
    assert names(tmp_path) == ["val2017.zip.etag", "val2017.zip.part"]
    server.seen.clear()
    fetch(tmp_path, server)
    assert server.seen == [("/zips/val2017.zip", "bytes=50000-", 206)]
    assert names(tmp_path) == ["val2017/1.jpg", "val2017/2.jpg"]


def test_a_file_that_changed_meanwhile_starts_again(tmp_path, server):
    server.break_after = [50_000]
    with pytest.raises(UnreachableError):
        fetch(tmp_path, server, attempts=1)
    changed = zipped({"val2017/1.jpg": b"new" * 30_000})
    server.files["/zips/val2017.zip"], server.tag = changed, '"second"'
    fetch(tmp_path, server, archives=archives(pictures=changed))
    assert (tmp_path / "val2017" / "1.jpg").read_bytes() == b"new" * 30_000


def test_a_server_that_cannot_continue_sends_it_all_again(tmp_path, server):
    server.ranges = False
    server.break_after = [50_000]
    fetch(tmp_path, server)
    assert [code for *_, code in server.seen] == [200, 200]
    assert (tmp_path / "val2017" / "1.jpg").read_bytes() == b"one" * 20_000


def test_a_file_that_was_whole_already_is_recognised(tmp_path, server):
    (tmp_path / "val2017.zip.part").write_bytes(PICTURES)
    fetch(tmp_path, server)
    assert [code for *_, code in server.seen] == [416]
    assert names(tmp_path) == ["val2017/1.jpg", "val2017/2.jpg"]


def test_a_partial_file_that_is_too_long_starts_again(tmp_path, server):
    (tmp_path / "val2017.zip.part").write_bytes(PICTURES + b"x")
    fetch(tmp_path, server)
    assert [code for *_, code in server.seen] == [416, 200]


def test_a_wrong_checksum_is_refused_and_removed(tmp_path, server):
    server.files["/zips/val2017.zip"] = PICTURES[:-1] + b"x"
    with pytest.raises(InputError, match=r"val2017\.zip came with MD5 \w{32} instead of \w{32} and was deleted"):
        fetch(tmp_path, server)
    assert names(tmp_path) == []


def test_an_archive_that_lay_there_is_checked_too(tmp_path, server):
    (tmp_path / "val2017.zip").write_bytes(PICTURES[:-1] + b"x")
    with pytest.raises(InputError, match=r"val2017\.zip does not have the MD5"):
        fetch(tmp_path, server)
    (tmp_path / "val2017.zip").write_bytes(PICTURES)
    fetch(tmp_path, server, keep_archives=True)
    assert server.seen == []
    assert names(tmp_path) == ["val2017.zip", "val2017/1.jpg", "val2017/2.jpg"]


def test_a_server_in_trouble_is_asked_again(tmp_path, server):
    server.errors = [503, 500]
    fetch(tmp_path, server)
    assert [code for *_, code in server.seen] == [503, 500, 200]


def test_a_server_without_the_file_is_not(tmp_path, server):
    del server.files["/zips/val2017.zip"]
    with pytest.raises(UnreachableError, match=r"404 Not Found; check --base-url"):
        fetch(tmp_path, server)
    assert len(server.seen) == 1


def test_no_server_is_unreachable(tmp_path):
    with socket.socket() as unheard:  # bound, so that nobody else takes the port, but not listening
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=r"can't be had: .*check the network"):
            download(tmp_path, base_url=url, archives=archives(), attempts=2, pause_s=0.01)


def test_each_new_try_is_said_and_nothing_empty_stays(tmp_path, server, capfd):
    server.errors = [503, 500, 503]
    with pytest.raises(UnreachableError, match=r"503 .*run the same command again$"):
        fetch(tmp_path / "new" / "coco", server)
    assert list(tmp_path.iterdir()) == []
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(": ")[2].rpartition("; ")[2] for line in lines] == [
        "trying again in 0.01 s (try 2 of 3)",
        "trying again in 0.02 s (try 3 of 3)",
    ]
    assert "the server answers 503" in lines[0]
    server.break_after = [0, 0, 0]
    with pytest.raises(UnreachableError):
        fetch(tmp_path / "new", server)
    assert list(tmp_path.iterdir()) == []


def test_only_web_addresses_are_fetched(tmp_path):
    with pytest.raises(InputError, match="has to start with http"):
        download(tmp_path, base_url="file:///etc")


def test_an_archive_that_would_write_elsewhere_is_refused(tmp_path, server):
    evil = zipped({"val2017/1.jpg": b"", "val2017/../../stolen.txt": b"x"})
    server.files["/zips/val2017.zip"] = evil
    with pytest.raises(InputError, match="lies outside its folder"):
        fetch(tmp_path / "root", server, archives=archives(pictures=evil))
    assert names(tmp_path) == ["root/val2017.zip"]


def test_an_archive_without_the_expected_content_is_refused(tmp_path, server):
    other = zipped({"something.txt": b""})
    server.files["/zips/val2017.zip"] = other
    with pytest.raises(InputError, match="does not hold val2017/"):
        fetch(tmp_path, server, archives=archives(pictures=other))
    assert not (tmp_path / "val2017").exists()


def test_an_unwritable_root_is_unreachable(tmp_path, server):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="can't be written"):
        fetch(tmp_path / "file", server)


def test_coco_has_all_parts_with_distinct_checksums():
    assert {archive.part for archive in COCO2017} == {"train", "val", "test", "annotations"}
    assert len({archive.md5 for archive in COCO2017}) == 5
    kept = {member for archive in COCO2017 for member in archive.members}
    assert {"train2017/", "val2017/", "test2017/", "annotations/image_info_test-dev2017.json"} <= kept
