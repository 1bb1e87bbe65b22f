"""The ledger's documents in an object store such as S3, which has neither locks nor renames nor appending.

- A document is changed by a conditional write: it succeeds only where what was read is still there. A store that
  ignores the conditions would let two drivers run one sweep, so it is tried whether it does, and refused if so.
- A journal is a row of segments, ``journal/ATTEMPT-NUMBER.jsonl``, which rank 0 writes at each checkpoint and now and
  then. An attempt's lines count up to the step that a later one began at: what a replaced worker adds is never seen.
- A folder has no moment at which it appears: what names it, a document or a manifest, is written after it.

Keys, region and endpoint are those of the environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL`` and so on), on every
node. What a node has read lies in its cache.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from detector.errors import InputError, UnreachableError
from orchestrator import journal
from orchestrator.storage import Change, mirror

FLUSH_S = 30.0
"""Steps are in the store at the latest after so many seconds."""
TRIES = 30
CONFLICT = ("412", "409", "PreconditionFailed", "ConditionalRequestConflict")
GONE = ("404", "NoSuchKey", "NotFound")


class ObjectStore:
    """A bucket, or what lies in it below a prefix. Raises ``InputError`` for an address that can't be one."""

    pause = 5.0

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        bucket, _, prefix = self.address.partition("://")[2].partition("/")
        if not bucket or "@" in bucket or "?" in address:
            raise InputError(
                "--storage must be s3://BUCKET/PREFIX and nothing else; keys go into $AWS_ACCESS_KEY_ID and "
                "$AWS_SECRET_ACCESS_KEY, another endpoint into $AWS_ENDPOINT_URL"
            )
        self._bucket, self._prefix = bucket, f"{prefix}/" if prefix else ""
        self.root = mirror(self.address)
        self._opened: Any = None
        self._writing: dict[str, _Segments] = {}
        self._turn = threading.RLock()
        """Checkpoints are kept, and journals flushed before, by another thread than the one that adds lines."""
        self._merged: dict[str, tuple[list[int], list[tuple[str, str]]]] = {}

    def prepare(self) -> None:
        """Tries whether a write can be made to depend on what is there."""
        self.root.mkdir(parents=True, exist_ok=True)
        key = f".probe-{uuid.uuid4().hex}"
        first = self._write(key, b"{}", None)
        second, stale = self._write(key, b"{}", None), self._write(key, b"{}", '"0123456789abcdef0123456789abcdef"')
        self._call("delete_object", Key=self._prefix + key)
        if not first or second or stale:
            raise UnreachableError(
                f"the store at {self.address} ignores the conditions of a write (If-None-Match, If-Match), so it can't "
                "keep two drivers apart; name a bucket of a store that has them, or a folder that every node sees"
            )

    def read(self, key: str) -> Any | None:
        """The document."""
        content, _ = self._read(key)
        return None if content is None else json.loads(content)

    def update(self, key: str, change: Change) -> None:
        """By conditional writes, until one succeeds."""
        for attempt in range(TRIES):
            content, version = self._read(key)
            new = change(None if content is None else json.loads(content))
            if new is None:
                return
            text = (json.dumps(new, indent=2, ensure_ascii=False) + "\n").encode()
            # A request that was repeated since its answer was lost is refused by what it wrote itself.
            if self._write(key, text, version) or self._read(key)[0] == text:
                return
            time.sleep(random.uniform(0.01, 0.05) * (attempt + 1))
        raise UnreachableError(f"{self.address}/{key} was changed by others {TRIES} times in a row; run it again")

    @contextlib.contextmanager
    def guarded(self, key: str, check: Callable[[Any | None], None]) -> Iterator[None]:
        """Without a lock: asked right before."""
        check(self.read(key))
        yield

    def age(self, key: str) -> float | None:
        """By the store's own clock, which dates its answers, too."""
        try:
            found = self._call("head_object", Key=self._prefix + key)
        except _Missing:
            return None
        now = found["ResponseMetadata"]["HTTPHeaders"].get("date")
        return (parsedate_to_datetime(now) - found["LastModified"]).total_seconds() if now else None

    def names(self, folder: str) -> list[str]:
        """What lies there."""
        start = f"{self._prefix}{folder.rstrip('/')}/"
        names = {found["Key"][len(start) :].partition("/")[0] for found in self._listed(start)}
        return sorted(name for name in names if name)

    def put(self, source: Path, key: str) -> None:
        """File by file."""
        if source.is_file():
            self._upload(source, key)
        for path in sorted(source.rglob("*")) if source.is_dir() else ():
            if path.is_file():
                self._upload(path, f"{key}/{path.relative_to(source).as_posix()}")

    def _upload(self, path: Path, key: str) -> None:
        self._call("upload_file", Filename=str(path), Key=self._prefix + key)
        target = self.root / key
        if target != path:
            target.unlink(missing_ok=True)  # what this node had is another version

    def shared(self, key: str) -> str:
        """Its URI."""
        return f"{self.address}/{key}"

    def fetch(self, key: str) -> Path:
        """Downloads what this node lacks, or has in another version."""
        start = self._prefix + key
        for found in self._listed(start):
            if found["Key"] == start or found["Key"].startswith(f"{start}/"):
                target = self.root / found["Key"][len(self._prefix) :]
                written = found["LastModified"].timestamp()
                known = target.stat() if target.is_file() else None
                if known is None or (known.st_size, known.st_mtime) != (found["Size"], written):
                    self._download(found["Key"], target, written)
        return self.root / key

    def _download(self, key: str, target: Path, written: float) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self._call("download_file", Key=key, Filename=str(temporary))
            os.utime(temporary, (written, written))
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def move(self, folder: str, target: str) -> None:
        """By copies; the status goes last, and with it the training."""
        start = f"{self._prefix}{folder}/"
        keys = sorted((found["Key"] for found in self._listed(start)), key=lambda key: key.endswith("/status.json"))
        for key in keys:
            source = {"Bucket": self._bucket, "Key": key}
            self._call("copy_object", CopySource=source, Key=f"{self._prefix}{target}/{key[len(start) :]}")
        for key in keys:
            self._call("delete_object", Key=key)
        shutil.rmtree(self.root / folder, ignore_errors=True)
        self._merged = {}

    # Journals

    def append(self, key: str, lines: bytes, *, guard: str, check: Callable[[Any | None], None], durable: bool) -> None:
        """Keeps the lines until it is time to write a segment."""
        with self._turn:
            segments = self._writing.setdefault(key, _Segments(1))
            segments.pending += lines
            segments.guard, segments.check = guard, check
            if durable:
                self.flush(key)
            elif time.monotonic() - segments.flushed > FLUSH_S:
                with contextlib.suppress(UnreachableError):  # the next checkpoint will say so, if it lasts
                    self.flush(key)

    def cut(self, key: str, step: int, attempt: int) -> None:
        """Nothing is removed: the attempt's number says what counts."""
        self._writing[key] = _Segments(attempt)

    def flush(self, key: str) -> None:
        """Writes a segment, if there is anything new."""
        with self._turn:
            segments = self._writing.get(key)
            if segments is None or not segments.pending or segments.check is None:
                return
            segments.check(self.read(segments.guard))
            name = f"{segments.attempt:04d}-{segments.number:06d}.jsonl"
            self._call("put_object", Key=f"{self._prefix}{_folder(key)}/{name}", Body=segments.pending)
            segments.pending, segments.number, segments.flushed = b"", segments.number + 1, time.monotonic()

    def follow(self, key: str, attempts: list[int]) -> Path:
        """All segments, as far as they count, in one file."""
        path = self.root / key
        start = f"{self._prefix}{_folder(key)}/"
        segments = sorted((found["Key"][len(start) :], found["ETag"]) for found in self._listed(start))
        if (attempts, segments) != self._merged.get(key) or not path.exists():
            content = b"".join(self._counting(key, segments, attempts))
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            temporary.write_bytes(content)
            os.replace(temporary, path)
            self._merged[key] = (list(attempts), segments)
        return path

    def _counting(self, key: str, segments: list[tuple[str, str]], attempts: list[int]) -> Iterator[bytes]:
        for name, version in segments:
            attempt = int(name.partition("-")[0])
            limit = min(attempts[attempt:], default=None)
            yield journal.until(self._segment(f"{_folder(key)}/{name}", version), limit)

    def _segment(self, key: str, version: str) -> bytes:
        # A training that begins anew has segments of the same names.
        path = self.root / f"{key}.{quote(version, safe='')}"
        if not path.exists():
            self._download(self._prefix + key, path, time.time())
        return path.read_bytes()

    # Requests

    def _read(self, key: str) -> tuple[bytes | None, str | None]:
        try:
            found = self._call("get_object", Key=self._prefix + key)
        except _Missing:
            return None, None
        return found["Body"].read(), found["ETag"]

    def _write(self, key: str, content: bytes, version: str | None) -> bool:
        """Writes where there is nothing, or that version; False where there is something else."""
        condition = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
        try:
            self._call("put_object", Key=self._prefix + key, Body=content, ContentType="application/json", **condition)
        except (_Conflict, _Missing):
            return False
        return True

    def _listed(self, start: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=start, **more)
            found += page.get("Contents", [])
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _call(self, operation: str, **arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client(), operation)(Bucket=self._bucket, **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code"))
            if code in GONE:
                raise _Missing from None
            if code in CONFLICT:
                raise _Conflict from None
            raise self._unreachable(error.response.get("Error", {}).get("Message") or code) from None
        except (BotoCoreError, OSError) as error:
            raise self._unreachable(" ".join(str(error).split())) from None
        except Exception as error:  # boto3's transfers have errors of their own, with no base in common
            if type(error).__module__.startswith(("boto3", "s3transfer")):
                raise self._unreachable(" ".join(str(error).split())) from None
            raise

    def _unreachable(self, why: str) -> UnreachableError:
        return UnreachableError(
            f"the storage {self.address} can't be used ({why[:300]}); check the bucket, $AWS_ACCESS_KEY_ID, "
            "$AWS_SECRET_ACCESS_KEY and $AWS_ENDPOINT_URL"
        )

    def _client(self) -> Any:
        if self._opened is None:
            try:
                import boto3
                from botocore.config import Config
            except ImportError:
                raise InputError(
                    "a storage in s3:// needs the package boto3; install it with `pip install 'detsweep[s3]'`"
                ) from None
            config = Config(retries={"mode": "standard", "max_attempts": 5}, connect_timeout=10, read_timeout=60)
            self._opened = boto3.session.Session().client("s3", config=config)
        return self._opened


class _Segments:
    """What one attempt writes of a journal."""

    def __init__(self, attempt: int) -> None:
        self.attempt, self.number, self.pending, self.flushed = attempt, 0, b"", time.monotonic()
        self.guard = ""
        self.check: Callable[[Any | None], None] | None = None


class _Missing(Exception):
    """There is no such object."""


class _Conflict(Exception):
    """Something else is there than the condition of a write said."""


def _folder(key: str) -> str:
    return key.removesuffix(".jsonl")
