"""Writing a split as an Arrow store, each image decoded once on the way. N images, M annotations."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from detector.data.coco import CocoSplit, digest_of
from detector.data.images import decode_image
from detector.errors import InputError
from detector.progress import Progress

FORMAT = 1
_SHARD_BYTES = 256 * 2**20
_IMAGES = pa.schema([("image", pa.large_binary())])
_ANNOTATIONS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("file_name", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("shard", pa.int32()),
        ("batch", pa.int32()),
        ("crc32", pa.uint32()),
        ("boxes", pa.list_(pa.float64())),
        ("category_ids", pa.list_(pa.int64())),
        ("crowd", pa.list_(pa.uint8())),
        ("areas", pa.list_(pa.float64())),
        ("annotation_ids", pa.list_(pa.int64())),
    ]
)


def write_store(found: CocoSplit, split: str, filesystem: pafs.FileSystem, path: str, *, progress: bool) -> None:
    """Writes the files of a store into the folder ``path`` of ``filesystem``, the manifest last."""
    files: dict[str, dict[str, Any]] = {}
    shards: list[str] = []
    places: list[tuple[int, int]] = []
    checksums: list[int] = []
    lengths: dict[str, int] = {}
    writer: pa.ipc.RecordBatchFileWriter | None = None
    sink: _Sink | None = None
    bar = Progress(len(found), f"converting {split}")
    for index, content in enumerate(_contents(found)):
        if writer is None or sink is None or sink.bytes > _SHARD_BYTES:
            _close(writer, sink, files)
            shards.append(f"images-{len(shards):05d}.arrow")
            sink = _Sink(filesystem, path, shards[-1])
            writer, batch = pa.ipc.new_file(sink.stream, _IMAGES), 0
        writer.write_batch(pa.record_batch([pa.array([content], pa.large_binary())], schema=_IMAGES))
        places.append((len(shards) - 1, batch))
        batch += 1
        checksums.append(zlib.crc32(content))
        lengths[found.file_names[index]] = len(content)
        if progress:
            bar.update(index + 1)
    _close(writer, sink, files)
    if progress:
        bar.close()
    sink = _Sink(filesystem, path, "annotations.arrow")
    writer = pa.ipc.new_file(sink.stream, _ANNOTATIONS)
    writer.write_table(_table(found, places, checksums))
    _close(writer, sink, files)
    manifest = {
        "format": FORMAT,
        "split": split,
        "source": str(found.annotation_file),
        "digest": digest_of(found.annotations_sha256, lengths),
        "images": len(found),
        "annotations": len(found.boxes),
        "has_annotations": found.has_annotations,
        "categories": [list(category) for category in found.categories],
        "shards": shards,
        "files": files,
    }
    with filesystem.open_output_stream(f"{path}/manifest.json") as stream:
        stream.write(json.dumps(manifest, indent=1).encode())


def _contents(found: CocoSplit) -> Iterator[bytes]:
    """The bytes of each image, each decoded once to be sure of it."""
    with ThreadPoolExecutor(decoding_threads()) as pool:
        for start in range(0, len(found), 64):  # in portions, so that memory is bounded
            yield from pool.map(lambda index: _checked(found, index), range(start, min(start + 64, len(found))))


def decoding_threads() -> int:
    """Threads worth having for decoding: the cores this process may use, up to eight."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _checked(found: CocoSplit, index: int) -> bytes:
    path = found.image_folder / found.file_names[index]
    height, width = (int(side) for side in found.sizes[index])
    label = f"{path} (image {found.image_ids[index]} in {found.annotation_file})"
    try:
        content = path.read_bytes()
        decode_image(content, size=(height, width))
    except OSError as error:
        raise InputError(
            f"{label} can't be read: {error.strerror}; put it there or remove the image from the JSON"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{label} can't be used: {error}; replace the file or remove the image from the JSON"
        ) from error
    return content


class _Sink:
    """An output file that counts and checksums what is written to it."""

    def __init__(self, filesystem: pafs.FileSystem, folder: str, name: str) -> None:
        self.name, self.bytes, self.closed = name, 0, False
        self.sha256 = hashlib.sha256()
        self._stream = filesystem.open_output_stream(f"{folder}/{name}")
        self.stream = pa.PythonFile(self, mode="w")

    def write(self, data: Any) -> int:
        content = memoryview(data)
        self._stream.write(content)
        self.sha256.update(content)
        self.bytes += content.nbytes
        return content.nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._stream.close()


def _close(writer: Any, sink: _Sink | None, files: dict[str, dict[str, Any]]) -> None:
    if writer is not None and sink is not None:
        writer.close()
        sink.close()
        files[sink.name] = {"bytes": sink.bytes, "sha256": sink.sha256.hexdigest()}


def _table(found: CocoSplit, places: list[tuple[int, int]], checksums: list[int]) -> pa.Table:
    def lists(values: np.ndarray, width: int = 1) -> pa.Array:
        offsets = pa.array((found.offsets * width).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1)))

    place = np.array(places, np.int32).reshape(-1, 2)
    columns = [
        pa.array(found.image_ids),
        pa.array(list(found.file_names), pa.string()),
        pa.array(found.sizes[:, 0]),
        pa.array(found.sizes[:, 1]),
        pa.array(place[:, 0]),
        pa.array(place[:, 1]),
        pa.array(np.array(checksums, np.uint32)),
        lists(found.boxes, 4),
        lists(found.category_ids),
        lists(found.crowd.astype(np.uint8)),
        lists(found.areas),
        lists(found.annotation_ids),
    ]
    return pa.Table.from_arrays(columns, schema=_ANNOTATIONS)
