"""``python -m detector.evaluate MODEL --data ROOT``: COCO's figures of a model on a split."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detector import command, plugins
from detector.data.places import Named, check_places
from detector.document import listed
from detector.errors import InputError

if TYPE_CHECKING:
    from detector.data.coco import Category

DESCRIPTION = """Evaluate MODEL (a folder, a file, runs:/RUN_ID/model, mmdet:NAME) on a split in COCO's format.

Prints the six figures, AP by class and the time an image takes, and writes detections.json, per_class.json and
metrics.json. For a split without annotations (test-dev2017) it writes the zip that COCO's server takes. Categories are
compared by id: those that only the model has don't count."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command.run(_evaluate, _parser(), argv)


def _parser() -> command.Parser:
    parser = command.Parser("evaluate", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--data", metavar="ROOT", required=True, help="data set in COCO's format")
    parser.add_argument("--split", default="val2017", help="default: val2017")
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=Path("evaluation"), help="default: evaluation")
    command.add_views(parser)
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store of runs:/ and models:/")
    command.add_plugins(parser, "the file of a model's head, where that is a plug-in")
    return parser


def _evaluate(arguments: argparse.Namespace) -> None:
    from detector.checkpoints import write_json
    from detector.data.coco import data_digest
    from detector.data.store import ensure_store
    from detector.evaluation import evaluate
    from detector.inference import load
    from detector.prediction import Options
    from detector.train import figures

    views = command.views(arguments)
    Options(**views)  # what means nothing is refused before anything is read
    check_places(arguments.data, [arguments.split], Named("--data"))
    command.output_folder(arguments.out)
    plugins.load(command.read_plugins(arguments))
    model = load(arguments.model, device=arguments.device, tracking_uri=arguments.tracking_uri)
    options = Options(max_detections=model.config.postprocess.max_detections, **views)
    with tempfile.TemporaryDirectory(prefix="detsweep-") as temporary:
        digest = data_digest(arguments.data, arguments.split, remember=None)
        store = ensure_store(arguments.data, arguments.split, Path(temporary), digest=digest)
        _check_categories(model.categories, store.categories, f"{arguments.split} of {arguments.data}")
        result = evaluate(model, store, model.input, label="evaluating", options=options)
        annotated, images = store.has_annotations, len(store)
    results = arguments.out / "detections.json"
    write_json(results, result.detections)
    write_json(arguments.out / "metrics.json", {**result.metrics, "device": result.device})
    time = f"{result.metrics['inference_ms']:.1f} ms an image, one at a time, from pixels to boxes, on {result.device}"
    if not annotated:
        name = f"detections_{arguments.split}_detsweep_results"
        with zipfile.ZipFile(arguments.out / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{name}.json", json.dumps(result.detections))
        print(f"{time}\n{images} images without annotations: not scored here")
        print(f"for COCO's server: {arguments.out / f'{name}.zip'}")
        return
    write_json(arguments.out / "per_class.json", result.per_class)
    print(f"{figures(result.metrics)}\n{time}\n")
    width = max(len(row["name"]) for row in result.per_class)
    for row in result.per_class:
        average = "–" if row["AP"] is None else f"{row['AP']:.2f}"
        print(f"{row['name']:{width}}  AP {average:>6}  {row['boxes']} boxes")
    print(f"\n{results}")


def _check_categories(mine: Sequence[Category], theirs: Sequence[Category], where: str) -> None:
    """Raises InputError unless the model knows each category of the data, by its id, under the same name."""
    names = {category.id: category.name for category in mine}
    for category in theirs:
        if names.get(category.id) != category.name:
            known = f"{names[category.id]!r}" if category.id in names else "unknown"
            few, some = (listed([each.name for each in side], 5) for side in (mine, theirs))
            raise InputError(
                f"the model finds {len(mine)} categories ({few}), but {where} has {len(theirs)} ({some}): "
                f"category {category.id} is {category.name!r} there and {known} to the model; "
                "evaluate it on data of its own kind"
            )


if __name__ == "__main__":
    sys.exit(main())
