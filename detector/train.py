"""``python -m detector.train ROOT``: one training on one's own data, without Ray and without MLflow."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector import command
from detector.config import ScheduleConfig, TrainingConfig
from detector.data.places import Named, check_places
from detector.errors import InputError
from detector.keys import Setting, flat, read_settings, resolve
from detector.plugins import Plugin
from detector.recipes import model_config, recipe_names

if TYPE_CHECKING:
    from detector.checkpoint_store import CheckpointStore

DESCRIPTION = """Train one detector on a folder in COCO's format (see python -m detector.data import for others).

The same command again continues from the newest checkpoint in --output. Under torchrun every process takes its share
of the global batch. Without --set schedule.iterations the length is that of the paper's 1x schedule in epochs (12),
at least 300 iterations."""
EPOCHS = 12.3  # 90,000 iterations of 16 images over COCO's 117,266 with boxes


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command.run(_train, _parser(), argv)


def _parser() -> command.Parser:
    parser = command.Parser("train", DESCRIPTION)
    parser.add_argument("root", metavar="ROOT", help="data set: annotations/SPLIT.json, images in SPLIT/")
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        default="dynamic_atss_r50",
        help="model; default dynamic_atss_r50. All: " + ", ".join(recipe_names()),
    )
    parser.add_argument("--output", metavar="FOLDER", type=Path, help="default: runs/RECIPE-ROOT")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps; default: the best there is")
    parser.add_argument(
        *("--set",),
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="set a key of the configuration, such as schedule.batch_size=8; repeatable",
    )
    use = "your own assigner or head in NAME.py, chosen by --set model.assigner.name=NAME or model.head.name=NAME"
    command.add_plugins(parser, use)
    return parser


def _train(arguments: argparse.Namespace) -> None:
    # A name that doesn't exist is refused before anything heavy is imported.
    model = model_config(arguments.recipe)
    settings = read_settings(arguments.set, {"data.root": "it is the command's first argument"})
    config = _config(model.model_dump(mode="json"), arguments.root, settings, command.read_plugins(arguments))
    root, splits = Path(arguments.root).expanduser().absolute(), (config.data.train, config.data.val)
    check_places(root, splits, Named("ROOT", "--set data.train=… or data.val=…"))

    import torch
    import torch.distributed as dist

    from detector import distributed
    from detector.backbones import fetch_weights
    from detector.checkpoint_store import CheckpointStore
    from detector.data.coco import data_digest
    from detector.data.store import ensure_store
    from detector.inference import pick_device
    from detector.rehearsal import rehearse
    from detector.training import TrainingStopped, train
    from detector.weights import resolve_weights

    rehearse(config)
    # Before the data are converted, which takes far longer.
    config = config.model_copy(update={"model": resolve_weights(config.model)})
    output = arguments.output or Path("runs") / f"{arguments.recipe}-{Path(arguments.root).resolve().name}"
    command.check_folder(output, "--output")
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    device = pick_device(arguments.device)
    stores = [
        ensure_store(
            root, split, output / "data", digest=data_digest(root, split, remember=output / "data" / "digests.json")
        )
        for split in splits
    ]
    config = _with_length(config, settings, len(stores[0].training_indices(config.data.keep_empty)))
    fetch_weights(config.model)
    store = CheckpointStore(output / "checkpoints", "step_")
    newest = distributed.broadcast(store.newest() if distributed.rank() == 0 else None)
    if distributed.rank() == 0:
        _keep_configuration(output, config, [store.digest for store in stores], started=newest is not None)
        _say(config, len(stores[0]), len(stores[1]), device, output)
    distributed.barrier()
    start = newest.step if newest else 0
    if start and distributed.rank() == 0:
        print(f"continuing from step {start}", file=sys.stderr)
        _cut_journal(output / "journal.jsonl", start)
    hooks = _hooks(output, store, start, config.schedule.max_iterations)
    scratch = output / ".writing"
    try:
        metrics = train(
            config,
            stores[0],
            stores[1],
            folder=scratch,
            hooks=hooks,
            resume_from=store.fetch(newest.name, scratch) if newest else None,
            device=device,
        )
    except TrainingStopped as stopped:
        raise KeyboardInterrupt from stopped
    if distributed.rank() == 0:
        _finish(output, store, metrics, stores[1].file_names, config)
    if dist.is_initialized():
        dist.destroy_process_group()


def _config(
    model: dict[str, Any], root: str, settings: list[Setting], plugins: Sequence[Plugin] = ()
) -> TrainingConfig:
    recipe = [Setting(f"model.{name}", value, "the recipe") for name, value in model.items()]
    data = [Setting("data.root", str(Path(root).expanduser().absolute()), "ROOT")]
    given = {setting.key for setting in settings}
    for split, names in (("train", ("train", "train2017")), ("val", ("val", "val2017"))):
        found = [name for name in names if _has_split(Path(root), name)]
        if f"data.{split}" not in given and found:
            data.append(Setting(f"data.{split}", found[0], "ROOT"))
    batch = next((setting.value for setting in settings if setting.key == "schedule.batch_size"), None)
    if isinstance(batch, int) and batch > 0 and "schedule.scale_with_batch" not in given:
        # Own data has no published batch size: only the rate follows the batch, by the linear rule.
        usual = ScheduleConfig()
        rate = usual.learning_rate * batch / usual.batch_size
        data.append(Setting("schedule.recipe_batch_size", batch, "the default"))
        data.append(Setting("schedule.learning_rate", rate, "the default"))
    if not given & {"resources.loader_workers", "resources.cpus_per_worker"}:
        data.append(Setting("resources.loader_workers", _loader_workers(), "the default"))
    config = resolve([recipe, data, settings], plugins)
    for plugin in plugins:
        if plugin not in config.plugins:
            kind = plugin.provides[0]
            raise InputError(
                f"--plugin {plugin.file} is given, but model.{kind}.name is {getattr(config.model, kind).name}; add "
                f"--set model.{kind}.name={plugin.name}, or leave the plug-in out"
            )
    return config


def _loader_workers() -> int:
    """One CPU for the training itself, up to four for reading; the processes of one machine share them."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(4, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1))


def _has_split(root: Path, split: str) -> bool:
    return any((root / "annotations" / f"{prefix}{split}.json").is_file() for prefix in ("", "instances_"))


def _with_length(config: TrainingConfig, settings: list[Setting], images: int) -> TrainingConfig:
    if any(setting.key == "schedule.iterations" for setting in settings):
        return config
    schedule = config.schedule
    iterations = max(300, round(EPOCHS * images / schedule.recipe_batch_size))
    return config.model_copy(update={"schedule": schedule.model_copy(update={"iterations": iterations})})


def _keep_configuration(output: Path, config: TrainingConfig, digests: list[str], *, started: bool) -> None:
    from detector.checkpoints import write_json

    output.mkdir(parents=True, exist_ok=True)
    path, mine = output / "config.json", {**config.model_dump(mode="json"), "digests": digests}
    if started:
        try:
            theirs = json.loads(path.read_text())
            same_data = theirs.pop("digests", None) == digests
            before = TrainingConfig.model_validate(theirs)
            was, now = flat(before), flat(config)
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{path} doesn't describe the training beside it; give another --output") from error
        changed = [key for key in now if was.get(key) != now[key] and not key.startswith(("resources.", "tracking."))]
        if [plugin.digest for plugin in before.plugins] != [plugin.digest for plugin in config.plugins]:
            changed.append("the plug-in")
        if not same_data:
            changed.append("the data")
        if changed:
            raise InputError(
                f"{output} holds a training with another configuration ({', '.join(changed[:4])} differ); "
                "give another --output, or delete that folder"
            )
    write_json(path, mine)


def _cut_journal(path: Path, step: int) -> None:
    """Leaves what the journal says up to ``step``: what came after the checkpoint is done again."""
    lines = path.read_text().splitlines() if path.is_file() else []
    path.write_text("".join(f"{line}\n" for line in lines if _step_of(line) <= step))


def _step_of(line: str) -> float:
    """The step of a line of the journal; that of a line cut short is beyond all others."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _say(config: TrainingConfig, train_images: int, val_images: int, device: Any, output: Path) -> None:
    schedule = config.schedule
    print(
        f"{train_images} training and {val_images} validation images, {schedule.max_iterations} iterations of "
        f"{schedule.batch_size} on {device}, into {output}",
        file=sys.stderr,
    )


def _hooks(output: Path, store: CheckpointStore, start: int, total: int) -> Any:
    import signal

    from detector import distributed
    from detector.progress import Progress
    from detector.training import Hooks

    class Local(Hooks):
        """Shows progress, keeps journal and checkpoints, and stops at SIGTERM or Ctrl-C."""

        def __init__(self) -> None:
            self.stop = False
            self.progress = Progress(total, "training", start=start) if distributed.rank() == 0 else None
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._stop)

        def _stop(self, number: int, frame: object) -> None:
            self.stop = True
            signal.signal(number, signal.SIG_DFL)  # the second time: at once

        def should_stop(self) -> bool:
            return self.stop

        def on_metrics(self, step: int, metrics: dict[str, float]) -> None:
            with (output / "journal.jsonl").open("a") as journal:
                journal.write(json.dumps({"step": step, **metrics}) + "\n")
            if self.progress is None:
                return
            self.progress.update(step, f"loss {metrics['loss']:.3f}  {metrics['images_per_second']:.1f} images/s")
            if step == total:
                self.progress.close(f"loss {metrics['loss']:.3f}")

        def on_evaluation(self, step: int, metrics: dict[str, float | None]) -> None:
            print(f"step {step}: {figures(metrics)}", file=sys.stderr)

        def keep(self, step: int, folder: Path) -> None:
            store.keep(folder, step)

    return Local()


def figures(metrics: dict[str, float | None]) -> str:
    """COCO's six figures in one line; a dash where one is undefined."""
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    return "  ".join(f"{name} {'–' if metrics.get(name) is None else f'{metrics[name]:.2f}'}" for name in names)


def _finish(
    output: Path,
    store: CheckpointStore,
    metrics: dict[str, float | None],
    images: Sequence[str],
    config: TrainingConfig,
) -> None:
    import shutil

    kept = store.newest()
    assert kept is not None
    newest = store.fetch(kept.name, output)
    shutil.rmtree(output / ".writing", ignore_errors=True)
    shutil.copytree(newest / "model", output / "model", dirs_exist_ok=True)
    for name in ("detections.json", "per_class.json"):
        shutil.copyfile(newest / name, output / name)
    folder = Path(config.data.root or "")
    places = (folder / config.data.val, folder / "images" / config.data.val)
    split = next((place for place in places if place.is_dir()), folder)
    print(f"\n{figures(metrics)}\n\nmodel: {output / 'model'}")
    words = ["python", "-m", "detector.predict", str(output / "model"), str(split / images[0])]
    for plugin in config.plugins:
        words += ["--plugin", plugin.file] if plugin.name == config.model.head.name else []
    print(shlex.join([*words, "--out", "found"]))


if __name__ == "__main__":
    sys.exit(main())
