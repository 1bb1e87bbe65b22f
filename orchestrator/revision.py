"""Which code is running: the commit of its checkout, if it lies in one, and the digest of what decides the weights."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import detector
from orchestrator.identity import sources_digest


@cache
def code_revision() -> dict[str, str]:
    """ "revision": the commit, with "-modified" where files differ from it; missing outside of a checkout.

    "sources": the digest of the sources that compute the weights, 16 hexadecimal digits.
    """
    found = {"sources": sources_digest()[:16]}
    root = Path(detector.__file__).resolve().parent.parent
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        if commit:
            modified = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "detector", "orchestrator")
            found["revision"] = commit + ("-modified" if modified else "")
    return found


def _git(root: Path, *words: str) -> str | None:
    """What git says; None where there is none, or it doesn't answer."""
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
