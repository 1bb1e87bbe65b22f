"""``python -m detector.data``: commands that look at data sets and make them ready.

Nothing heavy is imported before a command runs, so that help is instant.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from typing import NoReturn

from pydantic import ValidationError

from detector import command
from detector.config import GeneratedDataConfig
from detector.errors import InputError


def _check(options: argparse.Namespace) -> int:
    from detector.data.check import check, splits_of, write_report

    resolution = {"short_side": options.short_side, "long_side": options.long_side}
    reports = check(options.root, options.split or splits_of(options.root), **resolution)
    write_report(reports, **resolution, everything=options.all, out=sys.stdout)
    return 2 if any(report.refused for report in reports) else 0


def _import(options: argparse.Namespace) -> int:
    from detector.data.importers import import_folder

    counts, notes = import_folder(
        options.source,
        options.destination,
        val=options.val,
        group_by=options.group_by,
        seed=options.seed,
        format=options.format,
    )
    for note in notes[:20]:
        print(f"note: {note}")
    if len(notes) > 20:
        print(f"note: {len(notes) - 20} more of these")
    print(f"{options.destination}: {', '.join(f'{split} {count} images' for split, count in counts.items())}")
    print(f"next: python -m detector.data check {options.destination} --short-side 256 --long-side 256")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from detector.data.store import convert, open_store

    store = open_store(convert(options.root, options.split, options.out))
    print(f"{options.out}: {len(store)} images, {len(store.categories)} classes, digest {store.digest}")
    return 0


def _synthesize(options: argparse.Namespace) -> int:
    from detector.data.synthetic import generate

    keys = ("train_images", "val_images", "seed", "classes", "long_side")
    root = generate(GeneratedDataConfig(**{key: getattr(options, key) for key in keys}), options.folder)
    print(root)
    # Not on standard output, so that $(...) gives the folder alone.
    print(
        f"next: python -m detector.train {shlex.quote(str(root))} (or --data, or data.root: this folder)",
        file=sys.stderr,
    )
    return 0


def _download(options: argparse.Namespace) -> int:
    from detector.data.download import download

    root = download(options.root, base_url=options.base_url, parts=options.parts, keep_archives=options.keep_archives)
    print(f"{root}: {', '.join(options.parts)}")
    print(f"next: export DETSWEEP_DATA={os.path.abspath(root)}")
    return 0


def _browse(options: argparse.Namespace) -> int:
    from detector.config import AnchorConfig, AugmentationConfig, DataConfig
    from detector.data.browse import browse

    short = options.short_side[0] if len(options.short_side) == 1 else tuple(sorted(options.short_side))
    augmentation = AugmentationConfig(
        flip=options.flip, scale_jitter=options.scale_jitter, crop=options.crop, colour=options.colour
    )
    data = DataConfig(
        root=options.root, train=options.split, short_side=short, long_side=options.long_side, augmentation=augmentation
    )
    count = browse(
        data, options.out, images=options.images, seed=options.seed, anchors=AnchorConfig(scale=options.anchor_scale)
    )
    print(
        f"{options.out}: {count} images; boxes in the colour of their class, dots where anchors are positive for them"
    )
    return 0


class _Parser(argparse.ArgumentParser):
    """Its errors are sentences like all others. The commands' own parsers are made of it, too."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(prog="python -m detector.data", description="Look at data sets and make them ready.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    def sides(added: argparse.ArgumentParser, many: bool) -> None:
        text = "shorter side of the images in training, in pixels"
        if many:
            added.add_argument("--short-side", type=_positive, nargs="+", default=[800], help=f"{text}; two: a range")
        else:
            added.add_argument("--short-side", type=_positive, default=800, help=f"{text} (default 800)")
        added.add_argument("--long-side", type=_positive, default=1333, help="bound on the longer side (default 1333)")

    added = command("check", _check, "Report all that is wrong with a data set, and what training will do about it.")
    added.add_argument("root", metavar="ROOT", help="COCO-format folder")
    added.add_argument("--split", action="append", metavar="S", help="only this split; may be repeated")
    added.add_argument("--all", action="store_true", help="all notes, not just the first twenty of a kind")
    sides(added, many=False)

    added = command("import", _import, "Make a COCO-format folder from YOLO text files, Pascal VOC or flat COCO.")
    added.add_argument("source", metavar="SRC", help="folder with images and annotations; only read")
    added.add_argument("destination", metavar="DST", help="folder to make; must not exist")
    added.add_argument("--val", type=float, default=0.2, help="share of the images for validation (default 0.2)")
    added.add_argument("--group-by", metavar="REGEX", help="images whose paths agree in its first group stay together")
    added.add_argument("--seed", type=_seed, default=0, help="seed of the split (default 0)")
    added.add_argument("--format", choices=("yolo", "voc", "coco"), help="default: what the folder looks like")

    added = command("convert", _convert, "Write one split as an Arrow store, checking each image on the way.")
    added.add_argument("root", metavar="ROOT", help="COCO-format folder")
    added.add_argument("--split", required=True, metavar="S", help="split to convert")
    added.add_argument("--out", required=True, metavar="STORE", help="folder or pyarrow.fs URI to write")

    added = command("synthesize", _synthesize, "Draw a detection set of textured shapes with splits train and val.")
    added.add_argument("folder", metavar="FOLDER", help="where the set's own folder is made; its path is printed")
    for name, value in GeneratedDataConfig.model_fields.items():
        text = f"{value.description} (default {value.default})"
        added.add_argument(f"--{name.replace('_', '-')}", type=int, default=value.default, help=text)

    added = command("download", _download, "Fetch a public data set; run again, it goes on where it stopped.")
    added.add_argument("name", choices=("coco2017",), help="data set")
    added.add_argument("--root", default="coco", metavar="DIR", help="folder to fill (default coco)")
    added.add_argument("--base-url", default="http://images.cocodataset.org", metavar="URL", help="another mirror")
    parts = ("train", "val", "test", "annotations")
    added.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="only these (default all, 27 GB)")
    added.add_argument("--keep-archives", action="store_true", help="keep the zip files")

    added = command("browse", _browse, "Draw augmented training images with their boxes and positive anchors.")
    added.add_argument("root", metavar="ROOT", help="COCO-format folder")
    added.add_argument("--out", required=True, metavar="SHEET.png", help="picture to write")
    added.add_argument("--split", default="train", metavar="S", help="split (default train)")
    added.add_argument("--images", type=_positive, default=12, help="how many (default 12)")
    added.add_argument("--seed", type=_seed, default=0, help="seed of order and augmentation (default 0)")
    sides(added, many=True)
    added.add_argument("--flip", type=float, default=0.5, help="probability of a flip (default 0.5)")
    added.add_argument("--scale-jitter", type=float, nargs=2, metavar=("LOW", "HIGH"), help="range of the factor")
    added.add_argument("--crop", type=float, default=0.0, help="probability of a crop (default 0)")
    added.add_argument("--colour", type=float, default=0.0, help="strength of colour changes (default 0)")
    added.add_argument("--anchor-scale", type=_positive, default=8, help="side of the anchors in strides (default 8)")
    return top


def _positive(text: str) -> int:
    number = _whole(text)
    if not 1 <= number <= 10**9:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _seed(text: str) -> int:
    number = _whole(text)
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number ≥ 0 and < 2^32")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status."""
    return command.run(_run, parser(), arguments)


def _run(options: argparse.Namespace) -> int:
    try:
        return options.run(options)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{option} {first['input']!r}: {message}") from error


if __name__ == "__main__":
    sys.exit(main())
