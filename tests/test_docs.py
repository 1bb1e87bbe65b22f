"""Every command of every page runs, in the order of the page; links lead somewhere, and what is named exists."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil
import pytest

from detector import Detector
from detector.keys import FREE, keys, sections
from tests.pages.materials import MATERIALS, SLOW, lay_ready
from tests.pages.pages import PASTED, PROJECT, SHOWN, Page, pages
from tests.pages.reader import Reader

PAGES = pages()
ELSEWHERE = re.compile(
    r"(cp|docker|export|git|kubectl|pip|ray|ssh) |python -m detector\.(predict|evaluate) (mmdet|torchvision):"
)
"""What a ``console`` block may hold: commands for containers, other machines or a registry, and what goes with them."""
NOT_RUN = "no test runs"
"""What the page says right above such a block."""
COMMAND = re.compile(r"^\s*(python|make|ray|docker|kubectl|pip|curl|cluster/|mlflow|export|\.venv/)\b", re.MULTILINE)
KEY = re.compile(rf"(?<![\w.])(?:{'|'.join(section for section in sections() if '.' not in section)})\.[a-z_0-9.]+")
FILES = (".yaml", ".json", ".jsonl", ".safetensors", ".onnx", ".py", ".db")
MADE = ("cluster/.env",)
"""Files that a reader makes."""
THEIRS = ("DeformConv", "HistoryBuffer")
"""Names that are ONNX's and mmengine's."""
MODULE = re.compile(r"\b(?:detector|orchestrator)(?:\.[a-z]\w*)+")

both = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def of(*, slow: bool) -> list[Page]:
    """Pages with blocks for the one run or the other."""
    return [page for page in PAGES if any(block.kind in PASTED and block.slow == slow for block in page.blocks)]


def read(page: Page, folder: Path, shelf: Path, *, whole: bool) -> dict[str, str]:
    """Pastes ``page`` in an empty folder; what each block printed, by page and line."""
    home, here = folder / "home", folder / "here"
    home.mkdir()
    here.mkdir()
    words = lay_ready([name for name in page.materials if whole or name not in SLOW], here, shelf)
    with Reader(here, home, words) as reader:
        return {
            block.where: reader.paste(block)
            for block in page.blocks
            if block.kind in PASTED and (whole or not block.slow)
        }


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where materials are made once."""
    return tmp_path_factory.mktemp("shelf")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", of(slow=False), ids=lambda page: page.name)
def test_a_reader_pastes(page: Page, tmp_path: Path, shelf: Path) -> None:
    said = read(page, tmp_path, shelf, whole=False)
    EXPECTED.get(page.name, lambda folder, said: None)(tmp_path / "here", list(said.values()))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", of(slow=True), ids=lambda page: page.name)
def test_a_patient_reader_pastes(page: Page, tmp_path: Path, shelf: Path) -> None:
    with no_cluster_left() if "cluster/start_local" in page.text else contextlib.nullcontext():
        read(page, tmp_path, shelf, whole=True)


@contextlib.contextmanager
def no_cluster_left() -> Iterator[None]:
    """Ends what ``cluster/start_local`` started; skips where a cluster of it runs already, since there can be one."""
    command = [sys.executable, str(PROJECT / "cluster" / "start_local")]
    if subprocess.run([*command, "status"], check=False).returncode == 0:
        pytest.skip("a cluster of cluster/start_local runs on this machine")
    try:
        yield
    finally:
        subprocess.run([*command, "stop"], check=False)


def _of_an_assigner(folder: Path, said: list[str]) -> None:
    joined = "\n".join(said)
    assert "python -m detector.predict runs/middle/model" in joined
    assert re.search(r"plug-ins  middle\.py \(assigner middle, [0-9a-f]{12}\)", joined)
    assert "3 rows and seeds, 3 distinct trainings" in joined
    assert "--plugin plain.py" in joined
    assert len(list((folder / "found_plain").glob("*.png"))) == 4
    assert not (folder / "storage").exists(), "a dry run makes nothing"


def _of_the_paper(folder: Path, said: list[str]) -> None:
    joined = "\n".join(said)
    assert "37 rows and seeds, 32 distinct trainings" in joined
    assert re.search(r"18 × training.* 90,000 iterations of 16 images", joined)
    assert re.search(r"14 × training.* 180,000 iterations of 16 images", joined)
    shown = re.findall(r"from (\d\.\d\d) to (\d\.\d\d) AP are shown", joined)
    page = " ".join(Page(PROJECT / "docs" / "reproduce-the-paper.md").prose.split())
    assert shown
    assert all(f"{low} to {high} AP are shown" in page for low, high in shown), "the page says what was once so"
    assert sorted(path.name for path in (folder / "coco").iterdir())[-3:] == ["test2017", "train2017", "val2017"]


def _of_own_data(folder: Path, said: list[str]) -> None:
    splits = [{path.name[:6] for path in (folder / "by_scene" / split).iterdir()} for split in ("train", "val")]
    assert splits[0]
    assert splits[1]
    assert not splits[0] & splits[1], "a scene is in training and in validation"


def _of_a_quick_start(folder: Path, said: list[str]) -> None:
    assert (folder / "found.png").stat().st_size > 0
    assert json.loads((folder / "found_first" / "detections.json").read_text()) is not None
    assert "24 rows and seeds, 24 distinct trainings" in "\n".join(said)


def _of_inference(folder: Path, said: list[str]) -> None:
    assert len(list((folder / "found").glob("*.png"))) == 1 + 4 + 4
    assert list((folder / "evaluation_test").glob("*.zip"))


def _of_scaling(folder: Path, said: list[str]) -> None:
    shown = [block.text.strip() for block in Page(PROJECT / "docs" / "scaling.md").blocks if block.kind == "text"]
    printed = [text.strip() for text in said]
    assert len(shown) == 6
    for text in shown:
        assert text in printed, "an output on the page isn't what its command prints now"
    assert re.search(r"^table3@laptop on 1x2xcpu, simulated: 8 trainings, 2 at a time$", printed[-1], re.MULTILINE)
    assert "s a step: 1:1, 0.5:1 and 6 more (measured on" in " ".join(printed[-1].split())


EXPECTED: dict[str, Callable[[Path, list[str]], None]] = {
    "docs/add-an-assigner.md": _of_an_assigner,
    "docs/inference.md": _of_inference,
    "docs/quickstart.md": _of_a_quick_start,
    "docs/reproduce-the-paper.md": _of_the_paper,
    "docs/scaling.md": _of_scaling,
    "docs/your-own-data.md": _of_own_data,
}
"""What pasting a page must have led to, beyond that nothing failed: its folder, and what its blocks printed."""


@both
def test_no_command_is_left_out(page: Page) -> None:
    assert len(re.findall(r"^ *```", page.text, re.MULTILINE)) == 2 * len(page.blocks), "a fence that isn't understood"
    for block in page.blocks:
        assert block.kind in PASTED + SHOWN, f"{block.where}: {block.kind!r} says nothing about what it is"
        if block.kind == "text":
            assert not COMMAND.search(block.text), f"{block.where}: commands stand in a block of sh or console"
        if block.kind == "console":
            assert NOT_RUN in block.above, f"{block.where}: the page says right above that {NOT_RUN} this"
            for command in block.commands:
                assert ELSEWHERE.match(command), f"{block.where}: {command!r} can be run, in a block of sh"
    indented = re.compile(r"^ {4,}(?:python -m|ray |docker |kubectl |cluster/|export )", re.MULTILINE)
    assert not indented.search(page.prose), "a command that only spaces set off is run by nobody"
    unknown = set(page.materials) - set(MATERIALS)
    assert not unknown, f"{page.name} wants {sorted(unknown)}; there are {sorted(MATERIALS)}"


@both
def test_links_lead_somewhere(page: Page) -> None:
    for link in page.links:
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in Page(target).anchors, f"{page.name} links to {link}; there are {Page(target).anchors}"


def test_every_page_is_reached_from_the_first_one() -> None:
    reached: set[Path] = set()
    left = [PROJECT / "README.md"]
    while left:
        path = left.pop()
        if path in reached or path.suffix != ".md":
            continue
        reached.add(path)
        left += [(path.parent / link.partition("#")[0]).resolve() for link in Page(path).links if "://" not in link]
    assert not {page.path for page in PAGES} - reached


@both
def test_what_is_named_exists(page: Page) -> None:
    """Commands and their options, where no test runs them; keys of the configuration; targets of make; files."""
    targets = re.findall(r"^(\w+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    shown = [command for block in page.blocks if block.kind == "console" for command in block.commands]
    for text in [*page.code, *shown]:
        made = re.match(r"make (\w+)", text)
        assert not made or made[1] in targets, f"{page.name}: {text}"
        if "python -m " in text:
            _check_command(page, text)
        for key in KEY.findall(text):
            known = key in keys() or key in sections() or key.startswith(FREE) or hasattr(Detector, key[6:])
            assert known or key.endswith(FILES), f"{page.name}: there is no key {key}"
        if re.match(r"(?:docs|sweeps|cluster|tests|detector|orchestrator)/[\w./-]+$", text):
            assert (PROJECT / text).exists() or text in MADE, f"{page.name}: there is no {text}"
        if re.fullmatch(r"(?:detector|orchestrator)(?:\.\w+)+", text):
            assert _exists(text), f"{page.name}: there is no {text}"
        if re.fullmatch(r"\$?[A-Z]+_[A-Z_]+|[A-Z][a-z]+[A-Z]\w+", text):
            known = text in THEIRS or re.search(rf"\b{text.lstrip('$')}\b", _sources())
            assert known, f"{page.name}: nothing here is called {text}"


@cache
def _sources() -> str:
    """All that this project's programs and the files that start clusters say."""
    files = [path for name in ("detector", "orchestrator", "cluster") for path in (PROJECT / name).rglob("*")]
    kinds = (".py", ".yaml", ".env", "")
    return "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file() and path.suffix in kinds)


def _check_command(page: Page, text: str) -> None:
    module, *words = shlex.split(text.partition("python -m ")[2])
    if not module.startswith(("detector", "orchestrator")):
        return
    action = [word for word in words[:1] if module == "detector.data" and word.islower()]
    known = re.findall(r"--[a-z][a-z-]*", _help(module, *action))
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{page.name}: python -m {module} has no {word} in {text!r}"


@cache
def _help(module: str, *action: str) -> str:
    said = io.StringIO()
    place = f"{module}.__main__" if _folder(module) else module
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        importlib.import_module(place).main([*action, "--help"])
    return said.getvalue()


def _folder(module: str) -> bool:
    return PROJECT.joinpath(*module.split(".")).is_dir()


def _exists(name: str) -> bool:
    """Whether ``name`` is a module, or something in one."""
    for count in range(len(name.split(".")), 0, -1):
        module, rest = ".".join(name.split(".")[:count]), name.split(".")[count:]
        if PROJECT.joinpath(*module.split(".")).with_suffix(".py").is_file() or _folder(module):
            found = importlib.import_module(module)
            for part in rest:
                if not hasattr(found, part):
                    return False
                found = getattr(found, part)
            return True
    return False


def test_the_architecture_names_every_module() -> None:
    page = Page(PROJECT / "docs" / "architecture.md")
    named = set(MODULE.findall(page.prose))
    every = set()
    for package in ("detector", "orchestrator"):
        for path in (PROJECT / package).iterdir():
            if (path.suffix == ".py" and path.name != "__init__.py") or (path / "__init__.py").is_file():
                every.add(f"{package}.{path.stem}")
    assert not every - named, "docs/architecture.md says nothing of these"
    assert all(_exists(name) for name in named)


@pytest.mark.parametrize(
    ("text", "kind", "slow", "commands"),
    [
        ("# A\nWords.\n```sh\na --b \\\n    c  # why\n# a comment\nd\n```\n", "sh", False, ["a --b c", "d"]),
        ("Before.\n<!-- slow -->\n```python\nx = 1\n```\n", "python", True, ["x = 1"]),
    ],
)
def test_what_a_block_is(text: str, kind: str, slow: bool, commands: list[str], tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    (block,) = Page(tmp_path / "page.md").blocks
    assert (block.kind, block.slow, block.commands) == (kind, slow, commands)


def test_a_reader_keeps_what_was_set_and_stops_at_what_fails(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(
        "```sh\nNAME=here\nmkdir $NAME\ncd $NAME\nsleep 1000 &\nLEFT=$!\n```\n"
        "```python\nimport os\nfound = 3\n```\n```sh\nbasename $PWD; echo $NAME WORD $LEFT\n```\n"
        "```python\nprint(found + 1, os.environ['NAME'])\n```\n"
        "```sh\nfalse | cat\n```\n```python\nprint('so far')\nfound / 0\n```\n"
    )
    first, second, third, fourth, fifth, sixth = Page(tmp_path / "page.md").blocks
    (tmp_path / "folder").mkdir()
    with Reader(tmp_path / "folder", tmp_path, {"WORD": "meant"}) as reader:
        assert [reader.paste(block) for block in (first, second)] == ["", ""]
        where, said, meant, left = reader.paste(third).split()
        assert (where, said, meant) == ("here", "here", "meant")
        assert psutil.pid_exists(int(left)), "a server would run on, too"
        assert reader.paste(fourth) == "4 here\n"
        with pytest.raises(AssertionError, match="exit status 1"):
            reader.paste(fifth)
        with pytest.raises(AssertionError, match=r"so far[\s\S]*ZeroDivisionError"):
            reader.paste(sixth)
    assert not psutil.pid_exists(int(left)) or psutil.Process(int(left)).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("```\npython -m detector.train\n```\n", "says nothing"),
        ("```text\npython -m detector.train ROOT\n```\n", "stand in a block of sh"),
        ("Elsewhere; no test runs these:\n```console\npython -m detector.train ROOT\n```\n", "can be run"),
        ("Elsewhere:\n```console\ndocker compose up\n```\n", "no test runs"),
        ("So:\n\n    python -m detector.train ROOT\n", "run by nobody"),
        ("<!-- materials: my_elephants -->", "my_elephants"),
    ],
)
def test_a_command_that_nobody_would_run_is_found(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(AssertionError, match=sentence):
        test_no_command_is_left_out(Page(tmp_path / "page.md"))


@pytest.mark.parametrize(
    "text",
    [
        "`python -m detector.train ROOT --gpus 8`",
        "`python -m detector.data import A B --length 3`",
        "`make coffee`",
        "`model.assigner.topq`",
        "`--set schedule.iteration=10`",
        "`docs/nowhere.md`",
        "`detector.assigners.BEST`",
        "`BEST_ASSIGNER`",
        "`BestAssigner`",
    ],
)
def test_what_does_not_exist_is_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(AssertionError):
        test_what_is_named_exists(Page(tmp_path / "page.md"))
