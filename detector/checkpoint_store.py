"""The checkpoints of one training: each is whole or not there; the newest two and the best by AP are kept.

    FOLDER/checkpoint_00000040/  model/…  state.pt  step.json  …  manifest.json

The manifest is written last and has size and SHA-256 of every other file: a checkpoint counts only with a manifest that
is true. FOLDER is local or any URI that ``pyarrow.fs`` knows. Whoever dies while a checkpoint is being kept or an old
one removed leaves the newest whole one to be found.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from detector.data.store import locate
from detector.durable import sync, sync_tree
from detector.errors import InputError, UnreachableError

MANIFEST = "manifest.json"
FORMAT = 2
"""1: folders without a manifest, which Ray Train or a rename had marked whole."""
NEWEST = 2
"""So many are kept, beside the best."""

log = logging.getLogger(__name__)
_CHUNK = 1 << 22
_WITHOUT_MANIFEST = ("step.json", "state.pt", "model/config.json", "model/model.safetensors")


@dataclass(frozen=True)
class Kept:
    """A checkpoint that is there, whether or not it is whole."""

    name: str
    step: int
    ap: float | None
    """Validation AP at its step, where it was evaluated there."""
    files: dict[str, tuple[int, str]]
    """Bytes and SHA-256 by path; empty where there is no manifest that can be read."""


class CheckpointStore:
    """The checkpoints in ``folder``, called PREFIX and the step.

    ``writing`` is entered before one appears or goes, and raises where another process has the training by now.
    """

    def __init__(
        self,
        folder: str | Path,
        prefix: str = "checkpoint_",
        writing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.folder, self.prefix, self._writing = str(folder).rstrip("/"), prefix, writing
        self._filesystem, self._path = locate(self.folder)
        self._local = isinstance(self._filesystem, pafs.LocalFileSystem)

    def keep(self, source: Path, step: int) -> str:
        """Takes over the files of ``source``, which has a manifest, and removes what is no longer to be kept.

        Returns the checkpoint's name. Raises UnreachableError if it can't be written; those before it are intact then.
        Raises what ``writing`` raises.
        """
        try:
            # One that is there keeps its name, so that at no time there is less than before.
            usual = f"{self.prefix}{step:08d}"
            taken = [int(one[len(usual) + 1 :] or 0) for one in self._names() if re.fullmatch(usual + r"(_\d+)?", one)]
            name = f"{usual}_{max(taken) + 1}" if taken else usual
            (self._take if self._local else self._upload)(source, name)
        except (OSError, pa.ArrowException) as error:
            raise UnreachableError(
                f"the checkpoint of step {step} can't be written to {self.folder} ({_reason(error)}); "
                f"{self._before(step)}: make room or give write permission, and run the same command again"
            ) from error
        with contextlib.suppress(OSError, pa.ArrowException, UnreachableError):  # the next one tries again
            self.prune()
        return name

    def _before(self, step: int) -> str:
        """What is there if the checkpoint of ``step`` is not."""
        try:
            last = max((known for known in self.steps() if known < step), default=None)
        except (OSError, pa.ArrowException):
            return "those before it are intact"
        return "there is none before it" if last is None else f"the one of step {last} is intact"

    def newest(self) -> Kept | None:
        """The newest checkpoint that is whole and undamaged; says in the log what is wrong with newer ones."""
        for one in reversed(self._listed()):
            wrong = self._damage(one)
            if wrong is None:
                return one
            log.warning("the checkpoint %s in %s is not used: %s", one.name, self.folder, wrong)
        return None

    def steps(self) -> list[int]:
        """Steps of those that are whole as far as sizes tell, oldest first."""
        return [one.step for one in self._listed() if self._looks_whole(one)]

    def fetch(self, name: str, scratch: Path) -> Path:
        """A checkpoint as a folder of this machine: its own, or a copy in ``scratch``."""
        if self._local:
            return Path(self._path) / name
        target = scratch / name
        pafs.copy_files(
            f"{self._path}/{name}", str(target), source_filesystem=self._filesystem,
            destination_filesystem=pafs.LocalFileSystem(),
        )  # fmt: skip
        return target

    def prune(self) -> None:
        """Removes all but the newest two, the best, and what isn't whole but newer than those."""
        listed = self._listed()
        whole = list({one.step: one for one in listed if self._looks_whole(one)}.values())
        rated = [one for one in whole if one.ap is not None]
        kept = {one.name for one in whole[-NEWEST:]}
        kept |= {max(rated, key=lambda one: (one.ap, one.step)).name} if rated else set()
        gone = [one.name for one in listed if one.name not in kept and whole and one.step <= whole[-1].step]
        with self._writing():
            if not self._local:
                self._delete(gone)
                return
            for name in gone:
                # Under its own name it is whole to the end.
                os.replace(Path(self._path) / name, Path(self._path) / _hidden(name))
            # Whoever else left something here has the training no more.
            hidden = list(Path(self._path).glob(f".{self.prefix}*"))
        for leftover in hidden:
            shutil.rmtree(leftover, ignore_errors=True)

    def _listed(self) -> list[Kept]:
        """All that are there, oldest first; those of the former format come first, in the order of their names."""
        numbered = re.compile(re.escape(self.prefix) + r"(\d{8,})(_\d+)?")
        listed = []
        for name in self._names():
            match = numbered.fullmatch(name)
            manifest = self._json(name, MANIFEST)
            if match and manifest is not None:
                listed.append(_described(name, int(match[1]), manifest))
            elif (step := self._former_step(name)) is not None or match:
                listed.append(Kept(name, step if step is not None else int(match[1]) if match else 0, None, {}))
        return sorted(listed, key=lambda one: (one.step, one.name))

    def _former_step(self, name: str) -> int | None:
        step = (self._json(name, "step.json") or {}).get("step")
        return step if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None

    def _names(self) -> list[str]:
        found = self._filesystem.get_file_info(pafs.FileSelector(self._path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.base_name.startswith(self.prefix))

    def _json(self, name: str, file: str) -> dict[str, Any] | None:
        try:
            with self._filesystem.open_input_stream(f"{self._path}/{name}/{file}") as stream:
                content = json.loads(stream.read())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _sizes(self, name: str) -> dict[str, int]:
        root = f"{self._path}/{name}/"
        found = self._filesystem.get_file_info(pafs.FileSelector(root.rstrip("/"), recursive=True))
        return {info.path[len(root) :]: info.size for info in found if info.type == pafs.FileType.File}

    def _looks_whole(self, one: Kept) -> bool:
        sizes = self._sizes(one.name)
        if not one.files:
            return self._is_former(one.name, sizes)
        return all(sizes.get(path) == size for path, (size, _) in one.files.items())

    def _is_former(self, name: str, sizes: dict[str, int]) -> bool:
        """Whether it was written before there were manifests; without one, a file may have been cut short."""
        return MANIFEST not in sizes and all(sizes.get(path) for path in _WITHOUT_MANIFEST)

    def _damage(self, one: Kept) -> str | None:
        """What is wrong with a checkpoint; None if nothing is."""
        sizes = self._sizes(one.name)
        if not one.files:
            if not self._is_former(one.name, sizes):
                return "its manifest is damaged" if MANIFEST in sizes else "it is incomplete, it has no manifest"
            return self._damage_of_former(one)
        for path, (size, digest) in one.files.items():
            if path not in sizes:
                return f"{path} is missing"
            if sizes[path] != size:
                return f"{path} has {sizes[path]} bytes instead of {size}"
            whole = hashlib.sha256()
            try:
                with self._filesystem.open_input_stream(f"{self._path}/{one.name}/{path}") as stream:
                    while chunk := stream.read(_CHUNK):
                        whole.update(chunk)
            except (OSError, pa.ArrowException) as error:
                return f"{path} can't be read ({_reason(error)})"
            if whole.hexdigest() != digest:
                return f"{path} does not have the checksum of its manifest"
        return None

    def _damage_of_former(self, one: Kept) -> str | None:
        from detector.checkpoints import load_state, read_weights

        if not self._local:
            return "it is incomplete, it has no manifest"
        try:
            load_state(Path(self._path) / one.name)
            read_weights(Path(self._path) / one.name / "model")
        except InputError as error:
            return str(error)
        return None

    def _take(self, source: Path, name: str) -> None:
        """Moves ``source`` beside the others under a hidden name, waits for the disk, then gives it its own."""
        folder = Path(self._path)
        partial, target = folder / _hidden(name), folder / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            shutil.move(source, partial)
            sync_tree(partial)
            with self._writing():
                os.rename(partial, target)
            sync(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _upload(self, source: Path, name: str) -> None:
        """File by file, the manifest last."""
        target = f"{self._path}/{name}"
        files = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
        order = [*(one for one in files if one != MANIFEST), MANIFEST]
        for file in order:
            with self._writing() if file in (order[0], MANIFEST) else contextlib.nullcontext():
                self._filesystem.create_dir(os.path.dirname(f"{target}/{file}"), recursive=True)
                pafs.copy_files(
                    str(source / file), f"{target}/{file}", source_filesystem=pafs.LocalFileSystem(),
                    destination_filesystem=self._filesystem,
                )  # fmt: skip
        shutil.rmtree(source, ignore_errors=True)

    def _delete(self, names: list[str]) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_file(f"{self._path}/{name}/{MANIFEST}")
            self._filesystem.delete_dir(f"{self._path}/{name}")


def _hidden(name: str) -> str:
    """What a folder is called that isn't there yet, or no longer; nodes of one storage have the same process ids."""
    return f".{name}.{uuid.uuid4().hex[:8]}"


def write_manifest(folder: Path, step: int, ap: float | None) -> None:
    """Marks the files in ``folder`` as a whole checkpoint of ``step``; ``ap`` is its validation AP, if it has one."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    content: dict[str, Any] = {"format": FORMAT, "step": step, "AP": ap, "files": files}
    content["sha256"] = _own_digest(content)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(folder / MANIFEST)


def _described(name: str, step: int, manifest: dict[str, Any]) -> Kept:
    if isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT:
        raise InputError(
            f"the checkpoint {name} was written by a newer version (format {manifest['format']}, this one reads up to "
            f"{FORMAT}); upgrade detsweep, or move the checkpoint away"
        )
    try:
        if _own_digest({key: value for key, value in manifest.items() if key != "sha256"}) != manifest["sha256"]:
            raise ValueError("the manifest itself is damaged")
        files = {path: (int(one["bytes"]), str(one["sha256"])) for path, one in manifest["files"].items()}
        return Kept(name, step, manifest["AP"], files)
    except (KeyError, TypeError, ValueError, AttributeError):
        return Kept(name, step, None, {})


def _own_digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split())
