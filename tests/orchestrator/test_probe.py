"""What a node must find before it is used, on nodes that lack one thing each."""

from __future__ import annotations

import base64
import contextlib
import http.server
import re
import shutil
import socket
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from detector.data.store import convert
from detector.errors import InputError, UnreachableError
from orchestrator import probe, supply
from orchestrator.caching import fill
from orchestrator.ledger import Ledger
from orchestrator.nodes import Need, Node, Nodes
from orchestrator.probe import Finding, UnfitNodeError, check, check_server, examine, expect, require, summary
from orchestrator.supply import Growth, Supply, await_room
from tests.orchestrator.tables import write_data

ROOT = Path(__file__).parents[2]


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    root = write_data(tmp_path / "images")
    convert(root, "train", tmp_path / "storage" / "data" / "d1", progress=False)
    return tmp_path / "storage"


def test_a_node_that_has_everything(storage: Path, tmp_path: Path) -> None:
    expected = expect(Ledger(storage), "t", ["d1"], [str(tmp_path / "cache")])
    found = examine(expected, "n1")
    assert found.problems == ()
    require(expected)
    text = summary([found, Finding("n2", found.versions)], "3.9")
    said = r"2 nodes \(n1, n2\): Ray \d\S*, Python 3\.\S*, torch \d\S*, NCCL none, MLflow 3\S* \(its server 3\.9\)"
    assert re.fullmatch(said, text)


def test_a_storage_that_is_another_folder_of_that_name(storage: Path, tmp_path: Path) -> None:
    expected = expect(Ledger(storage), "t")
    (found,) = examine(replace(expected, nonce="x")).problems
    assert found == f"it doesn't see the storage {storage}, or another folder of that name"
    (found,) = examine(replace(expected, storage=str(tmp_path / "elsewhere"))).problems
    assert "or another folder of that name" in found


def test_data_that_a_node_lacks(storage: Path) -> None:
    expected = expect(Ledger(storage), "t", ["d1", "d2"], ["/dev/null/cache"])
    data, cache = examine(expected).problems
    assert data == f"it doesn't see the converted data {storage}/data/d2"
    assert "data.cache /dev/null/cache can't be written" in cache
    with pytest.raises(UnfitNodeError, match="can't be used: it doesn't see"):
        require(expected)


def test_versions_that_differ_or_are_out_of_range_are_named_with_what_is_supported(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = expect(Ledger(storage), "t")
    here = {**expected.versions, "torch": "2.5.1+cu121", "detsweep": "abc"}
    monkeypatch.setattr(probe, "versions", lambda: here)
    problems = examine(expected, "n7").problems
    assert problems[0] == "torch is 2.5.1+cu121, supported is >=2.6"
    assert re.fullmatch(
        r"torch is 2\.5\.1\+cu121, and the driver's 2\S+ \(supported: >=2\.6, the same on all nodes\)", problems[1]
    )
    assert problems[2].startswith("the package detsweep has other sources, and the driver's ")
    with pytest.raises(UnreachableError, match=r"n7: torch is 2\.5\.1\+cu121, supported is >=2\.6.*nothing was start"):
        check([Finding("n1"), Finding("n7", here, problems)])


def test_builds_for_cpus_and_for_cuda_work_together(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = expect(Ledger(storage), "t")
    version = expected.versions["torch"].split("+")[0]
    monkeypatch.setattr(probe, "versions", lambda: {**expected.versions, "torch": f"{version}+cu999"})
    assert examine(expected).problems == ()


def test_the_ranges_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    split = [re.split(r"(?=[\[<>=])", line, maxsplit=1) for line in project["dependencies"]]
    wanted = {name: re.sub(r"^\[.*\]", "", rest) for name, rest in split}
    for name in ("Ray", "torch", "torchvision", "MLflow"):
        assert probe.SUPPORTED[name] == wanted[name.lower()]
    assert probe.SUPPORTED["Python"] == project["requires-python"]


@pytest.mark.parametrize(("answer", "found"), [("3.9.1", "3.9.1"), ("<html>", None)])
def test_the_tracking_server_says_its_version(answer: str, found: str | None) -> None:
    with server(answer) as uri:
        assert check_server(uri) == found
    assert check_server("sqlite:///x.db") is None
    assert check_server("http://127.0.0.1:9") is None


def test_a_tracking_server_out_of_range() -> None:
    with server("2.9.2") as uri, pytest.raises(UnreachableError, match=r"server is 2\.9\.2, supported is >=3\.6,<4"):
        check_server(uri)


def test_a_user_and_a_password_in_the_servers_address_are_its_login() -> None:
    with server("3.9.1", login="me:p@ss word") as uri:
        assert check_server(uri) is None
        assert check_server(uri.replace("://", "://me:p%40ss%20word@")) == "3.9.1"
    for without_port in ("http://me:secret@localhost.invalid", "http://me:se/cret@127.0.0.1"):
        assert check_server(without_port) is None


def test_what_answers_is_no_web_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=lambda: listening.accept()[0].sendall(b"hello\r\n"), daemon=True).start()
        assert check_server(f"http://127.0.0.1:{listening.getsockname()[1]}") is None


@contextlib.contextmanager
def server(answer: str, login: str | None = None) -> Iterator[str]:
    """An HTTP server on loopback that gives one answer, to whoever has the ``login``, if there is one."""
    expected = None if login is None else f"Basic {base64.b64encode(login.encode()).decode()}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers.get("Authorization") == expected else 401)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    running = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


# The cluster while a sweep runs

TWO = Nodes.of([Node("a", "127.0.0.2", 2, 0), Node("b", "127.0.0.3", 2, 0)])


def look(monkeypatch: pytest.MonkeyPatch, of: Supply, *alive: Node) -> None:
    monkeypatch.setattr(supply.nodes, "present", lambda: Nodes.of(alive))
    of._look()


def test_a_cluster_that_grows_is_asked_until_that_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Nodes((1.0,), (0.0,)), Nodes((1.0,), (0.0,)), TWO]
    asked: list[list[dict[str, float]]] = []
    monkeypatch.setattr(supply.nodes, "present", lambda: found.pop(0) if len(found) > 1 else found[0])
    monkeypatch.setattr(supply, "_request", asked.append)
    monkeypatch.setattr(supply.time, "sleep", lambda seconds: None)
    growth = Growth()
    growth.take_back()
    assert await_room([Need(workers=2, cpus=2, gpus=0)], 60.0, growth) == TWO
    # At each look, for another sweep's request would have taken its place.
    assert asked == [[{"CPU": 2}] * 2] * 2
    growth.take_back()
    growth.take_back()
    assert asked[2:] == [[]]
    with pytest.raises(UnreachableError, match="but the cluster has 2 nodes"):
        await_room([Need(workers=8, cpus=2, gpus=1)], 0.0, growth)
    assert not growth.asked


def test_room_that_is_lost_is_waited_for_and_then_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], storage: Path
) -> None:
    now = [0.0]
    monkeypatch.setattr(supply.time, "monotonic", lambda: now[0])
    needs = [Need(workers=2, cpus=2, gpus=0)]
    watched = Supply(TWO, expect(Ledger(storage), "t"), lambda: needs, wait_s=60)
    look(monkeypatch, watched, *TWO.nodes)
    look(monkeypatch, watched, TWO.nodes[0])
    assert "the node 127.0.0.3 is lost" in (said := capfd.readouterr().err)
    assert "no room left for 2 workers of 2 CPU each; waiting up to 1 min for other nodes" in said
    now[0] = 59.0
    look(monkeypatch, watched, TWO.nodes[0])
    watched.check()
    # A replacement that is fit.
    monkeypatch.setattr(supply, "probe", lambda joined, _: {node.id: Finding(node.address) for node in joined})
    late = Node("c", "127.0.0.4", 2, 0)
    look(monkeypatch, watched, TWO.nodes[0], late)
    now[0] = 500.0
    look(monkeypatch, watched, TWO.nodes[0], late)
    watched.check()
    look(monkeypatch, watched, TWO.nodes[0])
    now[0] = 561.0
    look(monkeypatch, watched, TWO.nodes[0])
    with pytest.raises(UnreachableError, match="for 61 s the cluster has had no room for what is left"):
        watched.check()


def test_nothing_left_needs_no_room(monkeypatch: pytest.MonkeyPatch, storage: Path) -> None:
    watched = Supply(TWO, expect(Ledger(storage), "t"), list, wait_s=0)
    look(monkeypatch, watched)
    look(monkeypatch, watched)
    watched.check()


def test_a_node_that_joins_without_what_is_needed_is_said_and_held(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], storage: Path
) -> None:
    held: list[str] = []
    monkeypatch.setattr(Supply, "_occupy", lambda self, node: held.append(node.address))
    unfit = Finding("127.0.0.4", problems=("no data",))
    monkeypatch.setattr(supply, "probe", lambda joined, _: {one.id: unfit for one in joined})
    watched = Supply(TWO, expect(Ledger(storage), "t"), lambda: [Need(1, 1, 0)], wait_s=60)
    late = Node("c", "127.0.0.4", 2, 0)
    for _ in range(2):
        look(monkeypatch, watched, *TWO.nodes, late)
    assert capfd.readouterr().err == "the node 127.0.0.4 has joined and isn't used: no data\n"
    assert held == ["127.0.0.4"]


# data.cache


def test_a_cache_is_a_checked_copy_made_once(storage: Path, tmp_path: Path) -> None:
    source = storage / "data" / "d1"
    threads = [threading.Thread(target=fill, args=(str(source), tmp_path / "cache" / "d1")) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = fill(str(source), tmp_path / "cache" / "d1")
    assert store.image(0).shape == (48, 64, 3)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["d1"]
    shutil.rmtree(source)  # the copy is whole
    assert len(fill(str(source), tmp_path / "cache" / "d1")) == 2


def test_what_was_damaged_on_the_way_is_not_kept(storage: Path, tmp_path: Path) -> None:
    source = storage / "data" / "d1"
    shard = next(source.glob("images-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match=r"images-00000\.arrow doesn't have the checksum of its manifest"):
        fill(str(source), tmp_path / "cache" / "d1")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    with pytest.raises(UnreachableError, match=r"data\.cache can't be filled"):
        fill(str(source), Path("/dev/null/d1"))
