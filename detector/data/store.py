"""Arrow stores: a split's encoded images, boxes and ids in a few checksummed files that training reads.

A store is a folder, local or at any URI that ``pyarrow.fs`` knows, with
  images-00000.arrow …   one encoded image a record batch, so that one image is one read of exactly its bytes
  annotations.arrow      one row an image: ids, file name, size, boxes, CRC-32 of the image's bytes
  manifest.json          categories, digest, sizes and checksums of the files; written last, so it marks the rest whole
N images, G training boxes in an image, M annotations in all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import BaseModel, ValidationError

from detector.data.coco import Category, read_split, training_boxes
from detector.data.conversion import FORMAT, write_store
from detector.data.ending import ends_in_order
from detector.data.images import Decode, decode_image
from detector.data.instances import Instances
from detector.data.places import find_annotations
from detector.errors import InputError, UnreachableError

_ANNOTATIONS = "annotations.arrow"


class _File(BaseModel):
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """What a store's reader needs of its manifest."""

    digest: str
    has_annotations: bool
    categories: list[tuple[int, str]]
    shards: list[str]
    files: dict[str, _File]


class Store:
    """One split, opened for reading. Pickles as its address and reopens its files, also after a fork."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        self._filesystem, self._path = locate(self.uri)
        self.is_local = isinstance(self._filesystem, pafs.LocalFileSystem)
        manifest = _manifest(self._filesystem, self._path, self.uri)
        self.digest = manifest.digest
        self.has_annotations = manifest.has_annotations
        self.categories = tuple(Category(identity, name) for identity, name in manifest.categories)
        self._shards, self._files = manifest.shards, manifest.files
        for name, expected in self._files.items():
            info = self._filesystem.get_file_info(f"{self._path}/{name}")
            if info.size != expected.bytes:
                raise InputError(
                    f"{self.uri}/{name} has {info.size} bytes instead of {expected.bytes}; delete the store and "
                    "convert the data again"
                )
        table = self._annotations()
        self.image_ids: np.ndarray = _numbers(table["image_id"])
        self._file_names = table["file_name"]
        self.sizes: np.ndarray = np.stack([_numbers(table["height"]), _numbers(table["width"])], 1)
        self._crc32: np.ndarray = _numbers(table["crc32"])
        self._place = np.stack([_numbers(table["shard"]), _numbers(table["batch"])], 1)
        # Views of the file, which is mapped: the columns of boxes take no memory of the process.
        self._offsets = _numbers(table["category_ids"].offsets).astype(np.int64)
        self._boxes = _numbers(table["boxes"].values).reshape(-1, 4)
        self._crowd = _numbers(table["crowd"].values).view(bool)
        self._category_ids, self._areas, self._annotation_ids = (
            _numbers(table[name].values) for name in ("category_ids", "areas", "annotation_ids")
        )
        self._readers: dict[int, pa.ipc.RecordBatchFileReader] = {}
        self._opened_by = os.getpid()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.uri,)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return f"Store({self.uri!r}, {len(self)} images, {len(self.categories)} categories)"

    @cached_property
    def file_names(self) -> tuple[str, ...]:
        """Of the images, relative to their folder."""
        return tuple(self._file_names.to_pylist())

    def _annotations(self) -> dict[str, Any]:
        name = _ANNOTATIONS
        with self._source(name) as file:
            content = file.read_buffer()
        if hashlib.sha256(content).hexdigest() != self._files[name].sha256:
            raise InputError(
                f"{self.uri}/{name} does not have the checksum of its manifest; delete the store and convert the "
                "data again"
            )
        table = pa.ipc.open_file(content).read_all().combine_chunks()
        return {
            field: table[field].chunk(0) if len(table) else pa.array([], table[field].type)
            for field in table.column_names
        }

    @cached_property
    def _training(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Training boxes (K, 4) float32 xyxy, labels (K,) int64 and the (N + 1,) offsets of the images in them."""
        counts = np.diff(self._offsets)
        clipped, kept = training_boxes(self._boxes, np.repeat(self.sizes, counts, 0), self._crowd)
        labels = np.searchsorted([category.id for category in self.categories], self._category_ids[kept])
        before = np.concatenate([[0], np.cumsum(kept)])
        return np.ascontiguousarray(clipped[kept]), labels.astype(np.int64), before[self._offsets]

    def training_indices(self, keep_empty: bool) -> np.ndarray:
        """(K,) int64: the images that are trained on, those with training boxes unless ``keep_empty``."""
        if keep_empty:
            return np.arange(len(self), dtype=np.int64)
        return np.flatnonzero(np.diff(self._training[2])).astype(np.int64)

    def boxes(self, index: int) -> np.ndarray:
        """(G, 4) float32 xyxy training boxes of an image, in its own pixels and inside it."""
        boxes, _, offsets = self._training
        return boxes[offsets[index] : offsets[index + 1]]

    def labels(self, index: int) -> np.ndarray:
        """(G,) int64 labels, positions in `categories`."""
        _, labels, offsets = self._training
        return labels[offsets[index] : offsets[index + 1]]

    def encoded(self, index: int) -> memoryview:
        """The image's file as it was; InputError where it no longer has its checksum."""
        if self._opened_by != os.getpid():  # open files must not be shared with the process that forked this one
            self._readers, self._opened_by = {}, os.getpid()
        shard, batch = (int(number) for number in self._place[index])
        try:
            if shard not in self._readers:
                self._readers[shard] = self._open(self._shards[shard])
            content = memoryview(self._readers[shard].get_batch(batch).column(0)[0].as_buffer())
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{self._label(index)} can't be read from {self.uri} ({error})") from error
        if zlib.crc32(content) != self._crc32[index]:
            raise InputError(
                f"{self._label(index)} no longer has its checksum in {self.uri}/{self._shards[shard]}; delete the "
                "store and convert the data again"
            )
        return content

    def image(self, index: int, *, decode: Decode = decode_image, reduction: int = 1) -> np.ndarray:
        """(H, W, 3) uint8 RGB pixels; InputError names the file and the image id.

        ``decode`` and ``reduction``: see ``detector.data.images.decode_image``; that of ``detector.data.jpeg`` is
        quicker and needs torch.
        """
        height, width = (int(side) for side in self.sizes[index])
        try:
            return decode(self.encoded(index), size=(height, width), reduction=reduction)
        except ValueError as error:
            raise InputError(f"{self._label(index)} in {self.uri} can't be used: {error}") from error

    def _label(self, index: int) -> str:
        return f"{self._file_names[index]} (image {self.image_ids[index]})"

    def _open(self, name: str) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(self._source(name), options=pa.ipc.IpcReadOptions(use_threads=False))

    def _source(self, name: str) -> pa.NativeFile:
        path = f"{self._path}/{name}"
        return pa.memory_map(path) if self.is_local else self._filesystem.open_input_file(path)

    def instances(self) -> Instances:
        """What an evaluation compares with: boxes as annotated, crowds included."""
        return Instances.of_columns(
            image_ids=self.image_ids,
            category_ids=np.array([category.id for category in self.categories], dtype=np.int64),
            owners=np.repeat(self.image_ids, np.diff(self._offsets)),
            kinds=self._category_ids,
            boxes=self._boxes,
            areas=self._areas,
            crowd=self._crowd,
            ids=self._annotation_ids,
        )


def open_store(uri: str | Path) -> Store:
    """Opens a converted split from a local folder or a ``pyarrow.fs`` URI."""
    return Store(uri)


def is_store(uri: str | Path) -> bool:
    """Whether a whole store lies there."""
    filesystem, path = locate(str(uri))
    return filesystem.get_file_info(f"{path}/manifest.json").type == pafs.FileType.File


@ends_in_order()
def convert(root: str | Path, split: str, destination: str | Path, *, progress: bool = True) -> Path | str:
    """Writes a split as an Arrow store, decoding each image once; returns ``destination``.

    InputError names the first image that is missing, can't be decoded or has another size than its annotations say.
    A local store appears under its name only when it is whole; at a URI its manifest is written last. Whatever goes
    wrong, nothing is left behind.
    """
    filesystem, path = locate(str(destination))
    local = isinstance(filesystem, pafs.LocalFileSystem)
    info = filesystem.get_file_info(path)
    occupied = info.type == pafs.FileType.File or bool(
        info.type == pafs.FileType.Directory and filesystem.get_file_info(pafs.FileSelector(path))
    )
    if occupied:
        raise InputError(f"{destination} exists already; name another place or delete it first")
    found = read_split(root, split)
    parent, name = os.path.split(path)
    partial = f"{parent}/.{name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}" if local else path
    try:
        filesystem.create_dir(partial)
        write_store(found, split, filesystem, partial, progress=progress)
        if local:
            os.replace(partial, path)  # replaces an empty folder, too
    except OSError as error:
        raise UnreachableError(f"{destination} can't be written ({error}); name a place that can") from error
    finally:
        if local:
            shutil.rmtree(partial, ignore_errors=True)
        elif not is_store(destination):
            filesystem.delete_dir_contents(path, missing_dir_ok=True)
    return destination if isinstance(destination, str) else Path(path)


def ensure_store(root: str | Path, split: str, folder: str | Path, *, digest: str) -> Store:
    """The store of a split under ``folder/digest``, converted now if it isn't there yet.

    Safe from several processes and machines at once: they take turns where the file system has locks, and in any case
    a store appears whole. InputError where the data no longer have ``digest``.
    """
    if "://" in str(folder):
        return _ensure_remote(root, split, f"{folder}/{digest}")
    path = Path(folder) / digest
    if is_store(path):
        return open_store(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path.with_name(f"{digest}.lock")):
            if not is_store(path):
                _sweep_leftovers(path)
                try:
                    convert(root, split, path)
                except (UnreachableError, InputError):
                    if not is_store(path):  # otherwise another machine, unseen by the lock, was faster
                        raise
    except OSError as error:
        raise UnreachableError(f"{path} can't be written ({error.strerror}); name a storage that can") from error
    store = open_store(path)
    if store.digest != digest:
        shutil.rmtree(path, ignore_errors=True)
        raise InputError(
            f"{find_annotations(root, split)} or its images changed while they were being read; run the command again"
        )
    return store


def _ensure_remote(root: str | Path, split: str, uri: str) -> Store:
    """The store at ``uri``, made on this machine's disk first: who does the same meanwhile writes the same files."""
    if not is_store(uri):
        with tempfile.TemporaryDirectory(prefix="detsweep-") as scratch:
            made = Path(scratch) / uri.rsplit("/", 1)[1]
            convert(root, split, made)
            if open_store(made).digest != made.name:
                raise InputError(
                    f"{find_annotations(root, split)} or its images changed while they were being read; run the "
                    "command again"
                )
            filesystem, path = locate(uri)
            try:
                for name in sorted(os.listdir(made), key=lambda name: name == "manifest.json"):
                    pafs.copy_files(
                        str(made / name),
                        f"{path}/{name}",
                        source_filesystem=pafs.LocalFileSystem(),
                        destination_filesystem=filesystem,
                    )
            except OSError as error:
                raise UnreachableError(f"{uri} can't be written ({error}); name a storage that can") from error
    return open_store(uri)


def _numbers(column: pa.Array) -> np.ndarray:
    """A column without nulls as a view; Arrow's own way would import pandas, which takes longer than all the rest."""
    kind, content = np.dtype(str(column.type)), column.buffers()[1]  # Arrow's names of numbers are NumPy's, too
    values = np.zeros(0, kind) if content is None else np.frombuffer(content, kind)
    return values[column.offset : column.offset + len(column)]


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or URI, and the path there. Raises InputError for an address that can't be opened."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{uri} is not an address that Arrow can open: {error}") from error
    return filesystem, path.rstrip("/")


def _manifest(filesystem: pafs.FileSystem, path: str, uri: str) -> _Manifest:
    try:
        with filesystem.open_input_file(f"{path}/manifest.json") as file:
            manifest = json.loads(file.read())
    except FileNotFoundError as error:
        raise InputError(
            f"{uri} is not a converted data set, it has no manifest.json; make one with `python -m detector.data "
            "convert ROOT --split SPLIT --out FOLDER`"
        ) from error
    except ValueError as error:
        raise InputError(f"{uri}/manifest.json is not valid JSON; delete the store and convert again") from error
    except OSError as error:
        raise UnreachableError(f"{uri} can't be read ({error})") from error
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise InputError(f"{uri}/manifest.json is not the manifest of a store; delete the store and convert again")
    if manifest["format"] != FORMAT:
        raise InputError(f"{uri} has store format {manifest['format']}, this is {FORMAT}; delete and convert again")
    try:
        found = _Manifest.model_validate(manifest)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(
            f"{uri}/manifest.json lacks {key}, or has something else there; delete the store and convert again"
        ) from error
    if _ANNOTATIONS not in found.files:
        raise InputError(f"{uri}/manifest.json lists no {_ANNOTATIONS}; delete the store and convert again")
    return found


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``path``, or nothing on a file system without locks."""
    import fcntl

    with path.open("w") as file:
        # A store is renamed into place whole, so the lock only spares doing the work twice.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep_leftovers(path: Path) -> None:
    """Removes what conversions on this machine left that were killed."""
    start = f".{path.name}.{socket.gethostname()}."
    for leftover in path.parent.glob(f"{start}*"):
        pid = leftover.name[len(start) :].split(".")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
