"""What pages take for granted: images, data sets, models and a finished sweep, under the names that the pages use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.pages.pages import PROJECT

SWEEP = ["sweeps/table3.yaml", "--profile", "laptop", "--only", "1:1", "--only", "0.5:1"]
SWEEP += ["--set", "schedule.iterations=10"]
"""The sweep whose results lie in the storage ``demo``; docs/quickstart.md runs the same."""
SLOW = ("demo",)
"""Materials that take a cluster to make: a page has them in ``make slow`` alone."""


def _generated(folder: Path, images: int = 6) -> Path:
    """A generated set; its root."""
    from detector.config import GeneratedDataConfig
    from detector.data.synthetic import generate

    return generate(GeneratedDataConfig(train_images=images, val_images=4, long_side=160, classes=3), folder)


def coco_style(place: Path) -> None:
    """A small set in COCO's layout: train and val."""
    shutil.copytree(_generated(place.parent / ".drawn"), place)


def coco(place: Path) -> None:
    """The same under the names of COCO 2017, with a test-dev that has no boxes."""
    drawn = _generated(place.parent / ".drawn")
    for split in ("train", "val"):
        shutil.copytree(drawn / split, place / f"{split}2017")
    shutil.copytree(drawn / "val", place / "test2017")
    (place / "annotations").mkdir()
    for split in ("train", "val"):
        shutil.copyfile(drawn / f"annotations/{split}.json", place / f"annotations/instances_{split}2017.json")
    unknown = json.loads((drawn / "annotations/val.json").read_text())
    del unknown["annotations"]
    for name in ("test2017", "test-dev2017"):
        (place / f"annotations/image_info_{name}.json").write_text(json.dumps(unknown))


def coco2017(place: Path) -> None:
    """COCO 2017 as far as planning looks at it: as many images in val2017 and test-dev2017, and none that has bytes."""
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    (place / "annotations").mkdir(parents=True)
    for split, count, file in (
        ("train2017", 100, "instances_train2017"),
        ("val2017", 5_000, "instances_val2017"),
        ("test-dev2017", 20_288, "image_info_test-dev2017"),
    ):
        folder = place / ("test2017" if split == "test-dev2017" else split)
        folder.mkdir()
        images = [
            {"id": number, "file_name": f"{number:012d}.jpg", "width": 640, "height": 480}
            for number in range(1, count + 1)
        ]
        for image in images:
            (folder / str(image["file_name"])).touch()
        document = {"images": images, "categories": categories}
        if split != "test-dev2017":
            document["annotations"] = [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 64, 64], "area": 4096, "iscrowd": 0}
            ]
        (place / f"annotations/{file}.json").write_text(json.dumps(document))


def my_images(place: Path) -> None:
    """YOLO's text files beside their images, and classes.txt; ``scene1_…`` and ``scene2_…``."""
    drawn = _generated(place.parent / ".drawn")
    known = json.loads((drawn / "annotations/train.json").read_text())
    classes = [category["id"] for category in known["categories"]]
    place.mkdir()
    (place / "classes.txt").write_text("".join(f"{category['name']}\n" for category in known["categories"]))
    for number, image in enumerate(known["images"]):
        name = f"scene{1 + number % 3}_{number:02d}"
        shutil.copyfile(drawn / "train" / image["file_name"], place / f"{name}.jpg")
        lines = []
        for entry in known["annotations"]:
            if entry["image_id"] == image["id"]:
                left, top, width, height = entry["bbox"]
                box = (left + width / 2, top + height / 2, width, height)
                shares = [side / image["width" if i % 2 == 0 else "height"] for i, side in enumerate(box)]
                lines.append(" ".join([str(classes.index(entry["category_id"])), *(f"{s:.6f}" for s in shares)]))
        (place / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


def street(place: Path) -> None:
    """A picture."""
    drawn = _generated(place.parent / ".drawn")
    shutil.copyfile(sorted((drawn / "val").iterdir())[0], place)


def holiday(place: Path) -> None:
    """A folder of pictures."""
    shutil.copytree(_generated(place.parent / ".drawn") / "val", place)


def my_model(place: Path) -> None:
    """A small untrained detector of coco_style's classes that finds things, saved as a training saves its own."""
    from detector.checkpoints import save_model
    from detector.data.coco import Category
    from tests.detector.talkative import talkative

    drawn = _generated(place.parent / ".drawn")
    known = json.loads((drawn / "annotations/train.json").read_text())["categories"]
    model = talkative("dynamic_atss_r18", num_classes=len(known))
    model.categories = tuple(Category(category["id"], category["name"]) for category in known)
    save_model(model, place)


def theirs(place: Path) -> None:
    """A file of another project: torchvision's FCOS on its ResNet-18, with random weights."""
    import torch
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    )
    torch.save(FCOS(backbone, num_classes=91).state_dict(), place)


def repository(place: Path) -> None:
    """A checkout in which ``make`` has made its environment already: this one's, by links."""
    place.mkdir()
    for entry in PROJECT.iterdir():
        if not entry.name.startswith(".") and entry.name not in ("demo", "demo-tables", "runs", "dist"):
            (place / entry.name).symlink_to(entry)
    environment = place / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if entry.name != ".installed":
            (environment / entry.name).symlink_to(entry)
    (environment / ".installed").touch()


def demo(place: Path) -> None:
    """A storage with a finished sweep of two rows."""
    command = [sys.executable, "-m", "orchestrator.sweep", *SWEEP, "--storage", str(place), "--json"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "DETSWEEP_"))}
    environment = kept | {"PYTHONPATH": str(PROJECT), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, cwd=place.parent, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    place.with_suffix(".json").write_text(done.stdout)


MATERIALS: dict[str, Callable[[Path], None]] = {
    "coco": coco,
    "coco2017": coco2017,
    "coco_style": coco_style,
    "demo": demo,
    "holiday": holiday,
    "my_images": my_images,
    "my_model": my_model,
    "repository": repository,
    "street.jpg": street,
    "theirs.pth": theirs,
}
"""What each page can have in its folder. ``repository`` is what lies in the folder, not a folder in it."""


def lay_ready(names: list[str], folder: Path, shelf: Path) -> dict[str, str]:
    """Puts materials into ``folder``, each made once on the ``shelf``; returns what placeholders stand for."""
    words = {}
    for name in names:
        place = shelf / name
        if not place.exists():
            MATERIALS[name](place)
        if name == "demo":  # its paths stand in its database
            (folder / name).symlink_to(place)
            (first, *_) = json.loads(place.with_suffix(".json").read_text())["rows"]
            words["RUN_ID"] = first["run_id"]
        elif place.is_dir():
            shutil.copytree(place, folder if name == "repository" else folder / name, symlinks=True, dirs_exist_ok=True)
        else:
            shutil.copyfile(place, folder / name)
    return words
