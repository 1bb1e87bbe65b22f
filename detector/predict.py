"""``python -m detector.predict MODEL IMAGE…``: boxes drawn into pictures, and a COCO results file."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path

from detector import command
from detector.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command.run(_predict, _parser(), argv)


def _parser() -> command.Parser:
    parser = command.Parser("predict", "Find objects in images: pictures with boxes, and detections.json, into --out.")
    parser.add_argument("model", metavar="MODEL", help="a folder, runs:/RUN_ID/model, models:/NAME/1")
    parser.add_argument("images", metavar="IMAGE|FOLDER|GLOB", nargs="+")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True)
    parser.add_argument("--score-threshold", metavar="S", type=float, default=0.3, help="least score; default 0.3")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store of runs:/ and models:/")
    return parser


def find_images(words: Sequence[str]) -> list[Path]:
    """The files that ``words``, each a file, a folder or a glob, stand for. Raises InputError for one without any."""
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            matches = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not matches:
            raise InputError(f"{word}: there is no image; give a file, a folder of images or a quoted glob")
        found += matches
    return list(dict.fromkeys(found))


def _predict(arguments: argparse.Namespace) -> None:
    paths = find_images(arguments.images)

    from PIL import Image

    from detector.checkpoints import write_json
    from detector.inference import load, read_image
    from detector.progress import track

    command.output_folder(arguments.out)
    model = load(arguments.model, device=arguments.device, tracking_uri=arguments.tracking_uri)
    results, skipped, names = [], [], set()
    for number, path in enumerate(track(paths, len(paths), "predicting"), 1):
        try:
            pixels = read_image(path)
        except InputError as error:
            skipped.append(str(error))
            continue
        found = model.predict(pixels, score_threshold=arguments.score_threshold)
        name = path.stem if path.stem not in names else f"{path.stem}-{number}"
        names.add(name)
        found.draw(Image.fromarray(pixels)).save(arguments.out / f"{name}.png")
        results += [{**row, "file_name": str(path)} for row in found.to_coco(number)]
    write_json(arguments.out / "detections.json", results)
    for sentence in skipped:
        print(f"skipped: {sentence}", file=sys.stderr)
    print(f"{len(results)} objects in {len(paths) - len(skipped)} images: {arguments.out}")
    if len(skipped) == len(paths):
        raise InputError("none of the images could be read")


if __name__ == "__main__":
    sys.exit(main())
