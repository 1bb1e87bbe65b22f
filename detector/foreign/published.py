"""Detectors that others publish under an address: fetched once, checked, and kept where torch keeps its weights.

A file's name ends in the first digits of its SHA-256. Addresses are those of mmdetection's configs/*/metafile.yml and
configs/*/README.md (3.x), and of torchvision's weights enums.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detector.errors import InputError, UnreachableError
from detector.transfer import Checksum, fetch
from detector.weights import cache_folder

OPENMMLAB = "https://download.openmmlab.com/mmdetection/v2.0"
PYTORCH = "https://download.pytorch.org/models"
PREFIXES = ("mmdet:", "torchvision:", "gflv2:")


@dataclass(frozen=True)
class Published:
    """A file that can be fetched."""

    url: str
    ap: float
    """AP on COCO's val2017 that its publisher states, in percent."""

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rpartition("/")[2]

    @property
    def checksum(self) -> Checksum:
        """The digits of its name."""
        found = re.search(r"-([0-9a-f]{8,})\.pth$", self.file)
        assert found is not None
        return Checksum("sha256", found[1])


def _mmdet(family: str, name: str, ending: str, ap: float, file: str | None = None) -> tuple[str, Published]:
    return f"mmdet:{name}", Published(f"{OPENMMLAB}/{family}/{name}/{file or name}_{ending}.pth", ap)


PUBLISHED: dict[str, Published] = dict(
    (
        _mmdet("atss", "atss_r50_fpn_1x_coco", "20200209-985f7bd0", 39.4),
        _mmdet("atss", "atss_r101_fpn_1x_coco", "20200825-dfcadd6f", 41.5, "atss_r101_fpn_1x"),
        _mmdet("gfl", "gfl_r50_fpn_1x_coco", "20200629_121244-25944287", 40.2),
        _mmdet("gfl", "gfl_r50_fpn_mstrain_2x_coco", "20200629_213802-37bb1edc", 42.9),
        _mmdet("gfl", "gfl_r101_fpn_mstrain_2x_coco", "20200629_200126-dd12f847", 44.7),
        _mmdet("gfl", "gfl_r101_fpn_dconv_c3-c5_mstrain_2x_coco", "20200630_102002-134b07df", 47.1),
        _mmdet("gfl", "gfl_x101_32x4d_fpn_mstrain_2x_coco", "20200630_102002-50c1ffdb", 45.9),
        _mmdet("gfl", "gfl_x101_32x4d_fpn_dconv_c4-c5_mstrain_2x_coco", "20200630_102002-14a2bf25", 48.1),
        _mmdet("vfnet", "vfnet_r50_fpn_1x_coco", "20201027-38db6f58", 41.6),
        _mmdet("vfnet", "vfnet_r50_fpn_mstrain_2x_coco", "20201027-7cc75bd2", 44.5),
        _mmdet("vfnet", "vfnet_r50_fpn_mdconv_c3-c5_mstrain_2x_coco", "20201027pth-6879c318", 47.8),
        _mmdet("vfnet", "vfnet_r101_fpn_1x_coco", "20201027pth-c831ece7", 43.0),
        _mmdet("vfnet", "vfnet_r101_fpn_mstrain_2x_coco", "20201027pth-4a5d53f1", 46.2),
        _mmdet("vfnet", "vfnet_r101_fpn_mdconv_c3-c5_mstrain_2x_coco", "20201027pth-7729adb5", 49.0),
        _mmdet("vfnet", "vfnet_x101_32x4d_fpn_mdconv_c3-c5_mstrain_2x_coco", "20201027pth-d300a6fc", 49.7),
        _mmdet("vfnet", "vfnet_x101_64x4d_fpn_mdconv_c3-c5_mstrain_2x_coco", "20201027pth-b5f6da5e", 50.4),
        (
            "torchvision:retinanet_resnet50_fpn",
            Published(f"{PYTORCH}/retinanet_resnet50_fpn_coco-eeacb38b.pth", 36.4),
        ),
        ("torchvision:fcos_resnet50_fpn", Published(f"{PYTORCH}/fcos_resnet50_fpn_coco-99b0c9b7.pth", 39.2)),
    )
)


def is_published(source: str) -> bool:
    """Whether ``source`` is the name of a published detector, known or not."""
    return source.startswith(PREFIXES)


def find_published(name: str) -> Published:
    """The file called ``name``, such as "mmdet:atss_r50_fpn_1x_coco". Raises InputError for an unknown one."""
    if (known := _formerly(name)) in PUBLISHED:
        return PUBLISHED[known]
    if name.startswith("gflv2:"):
        raise InputError(
            f"{name}: GFLV2's files lie behind a page that only a browser opens; fetch one by the links of the README "
            "of implus/GFocalV2, and give its path"
        )
    near = difflib.get_close_matches(name, PUBLISHED, n=3, cutoff=0.3) or sorted(PUBLISHED)[:3]
    raise InputError(f"there is no published detector {name}; did you mean {', '.join(near)}?")


def _formerly(name: str) -> str:
    """The name under which a file was published of a configuration that mmdetection 3 calls ``name``.

    >>> _formerly("mmdet:gfl_x101-32x4d-dconv-c4-c5_fpn_ms-2x_coco")
    'mmdet:gfl_x101_32x4d_fpn_dconv_c4-c5_mstrain_2x_coco'
    """
    found = re.fullmatch(r"(mmdet:\w+?)_([rx]\d+)(-\d+x4d)?(?:-(m?dconv)-(c\d-c\d))?_fpn_ms-2x_coco", name)
    if found is None:
        return name
    family, depth, width, deformable, stages = found.groups()
    parts = [family, depth + (width or "").replace("-", "_"), "fpn", deformable, stages, "mstrain_2x_coco"]
    return "_".join(part for part in parts if part)


def fetch_published(name: str) -> Path:
    """The file called ``name`` on this machine, fetched where it isn't there yet.

    Raises InputError for an unknown name or a file with another checksum, UnreachableError when it can't be had.
    """
    found = find_published(name)
    folder = cache_folder()
    file = folder / found.file
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f"{found.file}.lock"):
            if not file.is_file():
                fetch(found.url, file, found.checksum)
            elif not found.checksum.fits(file):
                raise InputError(
                    f"{file} does not have the SHA-256 that its name says; delete it and run the command again"
                )
    except OSError as error:
        raise UnreachableError(f"{folder} can't be written ({error}); set TORCH_HOME to a folder that can") from error
    return file


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Several processes of a machine fetch a file once; the others wait."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)
            lock.unlink(missing_ok=True)
