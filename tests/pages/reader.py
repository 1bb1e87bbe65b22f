"""Someone who pastes the blocks of a page, one after the other, into one terminal and one Python session."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.pages.pages import PROJECT, Block

TIMEOUT_S = 1500.0
INSTEAD = {
    "make test": "make --dry-run test",  # this very suite
    "make lint": "make --dry-run lint",
    "make slow": "make --dry-run slow",
    "make tables": "make --dry-run tables",  # 37 rows
}
"""Commands that are looked up instead of run."""

# Blocks come by the names of files that hold them; after each its status is said.
SESSION = """
import sys, traceback
names = {"__name__": "__main__"}
for path in map(str.strip, sys.stdin):
    try:
        exec(compile(open(path, encoding="utf-8").read(), path, "exec"), names)
        status = "done"
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        status = "failed"
    print(f"\\n>>> {status}", flush=True)
"""


class Reader:
    """In ``folder``, with a home of their own; ``words`` replace what stands for something that a reader fills in."""

    def __init__(self, folder: Path, home: Path, words: Mapping[str, str] | None = None) -> None:
        self.folder, self.words = folder, dict(words or {})
        self._state, self._count = home / "shell", 0
        self._home = home
        self._session: subprocess.Popen[str] | None = None
        self._behind: list[int] = []
        """Process groups of blocks that have left something running, such as a server."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "MLFLOW_", "DETSWEEP_", "AWS_", "TORCH_HOME"))
        }
        self._environment = kept | {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
        }

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._session is not None:
            self._session.kill()
            self._session.communicate()
        for group in self._behind:
            _end(group)

    def paste(self, block: Block) -> str:
        """What ``block`` prints. AssertionError, with all that was printed, where it fails."""
        text = block.text
        for name, value in self.words.items():
            text = re.sub(rf"\b{name}\b", value.replace("\\", r"\\"), text)
        if block.file is not None:
            (self.folder / block.file).write_text(text, encoding="utf-8")
            return ""
        assert block.kind != "yaml", f"{block.where}: the first line of a block of YAML names its file: # NAME.yaml"
        return self._shell(block, text) if block.kind == "sh" else self._python(block, text)

    def _shell(self, block: Block, text: str) -> str:
        for command, other in INSTEAD.items():
            text = re.sub(rf"^{command}\b", other, text, flags=re.MULTILINE)
        # What a block sets, and where it goes, is so in the next one, too.
        before = f"if [ -e {self._state} ]; then . {self._state}; fi\nset -eu -o pipefail -o allexport\n"
        after = f'\n{{ export -p; printf "cd %q\\n" "$PWD"; }} > {self._state}\n'
        self._count += 1
        said = self._home / f"said_{self._count}"
        with said.open("wb") as output:  # no pipe, which what is left running would hold open
            process = subprocess.Popen(
                ["bash", "-c", before + text + after],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(timeout=TIMEOUT_S)
            finally:
                if process.returncode is None:
                    _end(process.pid)
                    process.wait()
        if _members(process.pid):
            self._behind.append(process.pid)
        printed = said.read_text(encoding="utf-8", errors="replace")
        assert status == 0, f"{block.where}: exit status {status} of\n{text}\n{printed}"
        return printed

    def _python(self, block: Block, text: str) -> str:
        if self._session is None:
            # Begun in the terminal as it is by now.
            begin = f'if [ -e {self._state} ]; then . {self._state}; fi\nexec {sys.executable} -c "$0"'
            self._session = subprocess.Popen(
                ["bash", "-c", begin, SESSION],
                cwd=self.folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        assert self._session.stdin is not None
        assert self._session.stdout is not None
        self._count += 1
        file = self._home / f"block_{self._count}.py"
        file.write_text(text, encoding="utf-8")
        timer = threading.Timer(TIMEOUT_S, self._session.kill)
        timer.start()
        said = []
        try:
            self._session.stdin.write(f"{file}\n")
            self._session.stdin.flush()
            for line in self._session.stdout:
                if line.startswith(">>> "):
                    break
                said.append(line)
            else:
                line = ">>> ended"
        finally:
            timer.cancel()
        assert line.strip() == ">>> done", f"{block.where}: {line.strip()[4:]}\n{text}\n{''.join(said)}"
        return "".join(said).removesuffix("\n")


def _end(group: int) -> None:
    """Ends the processes of a group: first asked, so that they end in turn what they have started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + 30
        if _members(group):
            os.killpg(group, number)
        while _members(group) and time.monotonic() < until:
            time.sleep(0.1)


def _members(group: int) -> list[int]:
    """The process ids of those of a group that still run."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
