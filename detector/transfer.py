"""Fetching a file: a broken connection is taken up where it stopped, and only the right checksum lets it appear."""

from __future__ import annotations

import base64
import hashlib
import http.client
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from detector.errors import InputError, UnreachableError
from detector.progress import Progress

_CHUNK = 2**20
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Checksum:
    """What a file's hash must be, or begin with."""

    algorithm: str
    """Of hashlib: "md5" or "sha256"."""
    value: str
    """Hexadecimal digits, all or the first ones."""

    @property
    def title(self) -> str:
        """The algorithm as people write it."""
        return {"md5": "MD5", "sha256": "SHA-256"}[self.algorithm]

    def of(self, file: Path) -> str:
        """The hash of ``file``, as many digits as are known of the right one."""
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.new(self.algorithm, usedforsecurity=False)).hexdigest()
        return found[: len(self.value)]

    def fits(self, file: Path) -> bool:
        """Whether ``file`` is the right one."""
        return self.of(file) == self.value


def request(url: str) -> urllib.request.Request:
    """Asks for ``url``. A user and a password in it go into a header: urllib would take them for a part of the host.

    ``full_url`` of what is returned lacks them, and is what messages may show.
    """
    parts = urllib.parse.urlsplit(url)
    login, _, host = parts.netloc.rpartition("@")
    asked = urllib.request.Request(parts._replace(netloc=host).geturl())
    if login:
        user, _, password = (urllib.parse.unquote(part) for part in login.partition(":"))
        coded = base64.b64encode(f"{user}:{password}".encode()).decode()
        asked.add_unredirected_header("Authorization", f"Basic {coded}")
    return asked


def fetch(
    url: str,
    file: Path,
    checksum: Checksum,
    *,
    option: str | None = None,
    attempts: int = 6,
    pause_s: float = 1.0,
) -> None:
    """Downloads ``url`` into ``file``, which appears only with the right checksum.

    A connection that breaks is taken up again ``attempts`` times without progress, ``pause_s`` later and doubling.
    UnreachableError where the server can't be had; the partial file stays and the next call goes on from it.
    InputError for another checksum (the file is removed). ``option`` of the command names the server, if there is one.
    """
    part, tag = file.with_name(f"{file.name}.part"), file.with_name(f"{file.name}.etag")
    try:
        _receive_all(url, part, tag, option, attempts, pause_s)
    finally:
        if not part.exists() or not part.stat().st_size:  # nothing to go on from
            part.unlink(missing_ok=True)
            tag.unlink(missing_ok=True)
    if not checksum.fits(part):
        actual = checksum.of(part)
        part.unlink()
        tag.unlink(missing_ok=True)
        shown = request(url).full_url
        raise InputError(
            f"{shown} came with {checksum.title} {actual} instead of {checksum.value} and was deleted; run the command "
            "again" + (f", or name another {option}" if option else f", or put the right one at {file} yourself")
        )
    part.rename(file)
    tag.unlink(missing_ok=True)


def _receive_all(url: str, part: Path, tag: Path, option: str | None, attempts: int, pause_s: float) -> None:
    """Downloads ``url`` into ``part``, by as many connections as it takes, and says when one broke."""
    failures, shown = 0, request(url).full_url
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part, tag):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise UnreachableError(
                    f"{shown} can't be had: {reason}; {f'check {option}, or ' if option else ''}put {part.stem} into "
                    f"{part.parent} yourself"
                ) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            cause = getattr(error, "reason", error)
            reason = getattr(cause, "strerror", None) or str(cause) or type(error).__name__
        have = part.stat().st_size if part.exists() else 0
        failures = 1 if have > before else failures + 1
        if failures >= attempts:
            raise UnreachableError(
                f"{shown} can't be had: {reason}; check the network and run the same command again"
                + (f", it goes on from {have} bytes" if have else "")
            )
        pause = pause_s * 2 ** (failures - 1)
        print(f"{shown}: {reason}; trying again in {pause:g} s (try {failures + 1} of {attempts})", file=sys.stderr)
        time.sleep(pause)


def _receive(url: str, part: Path, tag: Path) -> bool:
    """One connection; whether ``part`` is whole after it."""
    have = part.stat().st_size if part.exists() else 0
    asked = request(url)
    if have:
        asked.add_header("Range", f"bytes={have}-")
        if tag.exists():  # another version of the file is sent from its start instead
            asked.add_header("If-Range", tag.read_text())
    try:
        response = urllib.request.urlopen(asked, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return True  # the last connection had brought everything
        part.unlink()
        return False
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            return False
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total is not None and shutil.disk_usage(part.parent).free < total - have:
            raise OSError(f"{part.name} needs {(total - have) / 1e9:.1f} GB more than is free")
        if response.headers.get("ETag"):
            tag.write_text(response.headers["ETag"])
        bar = Progress((total or 0) // _CHUNK, f"downloading {part.stem} (MiB)", start=have // _CHUNK)
        try:
            with part.open("ab" if resumed else "wb") as stream:
                while chunk := response.read(_CHUNK):
                    stream.write(chunk)
                    have += len(chunk)
                    bar.update(have // _CHUNK)
        finally:
            bar.close()
    return total is None or have == total
