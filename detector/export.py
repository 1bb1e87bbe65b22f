"""``python -m detector.export MODEL --out FILE``: a model as an ONNX graph, from pixels to boxes.

The graph takes one image, already resized and padded, and does everything after that as ``predict`` does: it
normalises, runs the network, places the anchors for the image's own size, and suppresses class by class.

Legend: H, W padded height and width, multiples of 32; K candidates of all levels; C classes; D detections.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector import command, plugins
from detector.errors import InputError

if TYPE_CHECKING:
    from detector.model import Detector

DESCRIPTION = """Write MODEL (a folder, runs:/RUN_ID/model, models:/NAME/1) as an ONNX file.

Inputs: image (1, 3, H, W) RGB of 0 to 255, resized as the model wants it and padded with zeros at the right and the
bottom to multiples of 32; size (2,) int64, its height and width before padding. Outputs: boxes (D, 4) xyxy in pixels of
the resized image, scores (D,) descending, labels (D,). See docs/inference.md."""
OPSET = 20


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return command.run(_export, _parser(), argv)


def _parser() -> command.Parser:
    parser = command.Parser("export", DESCRIPTION)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("model.onnx"), help="default: model.onnx")
    parser.add_argument("--score-threshold", metavar="S", type=float, help="least score; default: the recipe's rule")
    parser.add_argument("--max-detections", metavar="N", type=int, default=100, help="default: 100")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow store of runs:/ and models:/")
    command.add_plugins(parser, "the file of a model's head, where that is a plug-in")
    return parser


def _export(arguments: argparse.Namespace) -> None:
    from detector.inference import load

    plugins.load(command.read_plugins(arguments))
    model = load(arguments.model, device="cpu", tracking_uri=arguments.tracking_uri)
    path = export(
        model, arguments.out, score_threshold=arguments.score_threshold, max_detections=arguments.max_detections
    )
    print(f"{path}  {path.stat().st_size / 2**20:.0f} MB")


def export(
    model: Detector, path: str | Path, *, score_threshold: float | None = None, max_detections: int = 100
) -> Path:
    """Writes ``model`` to ``path`` as an ONNX graph of one image of any size, and returns the path.

    The options are those of ``predict``. Raises InputError for options that mean nothing, without the packages of the
    extra ``export``, and for an operator that ONNX has no like of.
    """
    import torch
    from torch.export import Dim

    from detector.prediction import Options

    options = Options(score_threshold=score_threshold, max_detections=max_detections)
    path = Path(path).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out {path} can't be written: a file in a folder that exists is expected")
    try:
        import onnx
        import onnxscript  # noqa: F401  (what torch.onnx needs)
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'detsweep[export]'") from error
    pixels = torch.float32 if model.resize == "torchvision" else torch.uint8
    example = (
        torch.zeros(1, 3, 256, 320, dtype=pixels, device=model.device),
        torch.tensor([250, 311], device=model.device),
    )
    sides = {2: 32 * Dim("rows", min=1, max=512), 3: 32 * Dim("columns", min=1, max=512)}
    training = model.training
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                _graph(model, options).eval(), example, dynamic_shapes=(sides, None), strict=False
            )
            exported = torch.onnx.export(program, opset_version=OPSET, dynamo=True, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{model.config.backbone} {model.config.head.name} can't be exported: {reason}") from error
    finally:
        model.train(training)
    assert exported is not None
    proto = _suppressed(exported.model_proto, model, options)
    onnx.checker.check_model(proto)
    temporary = path.with_name(f".{path.name}.part")
    onnx.save(proto, temporary)
    temporary.replace(path)
    return path


def _graph(model: Detector, options: Any) -> Any:
    import torch
    from torch import Tensor, nn

    from detector.anchors import build_grid
    from detector.boxes import clip
    from detector.postprocess import kept, ranked

    class Candidates(nn.Module):
        """Pixels and size -> boxes (K, 4), scores (K,), 0 where out of question, labels (K,)."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            config, least = model.config.postprocess, options.score_threshold
            threshold = config.score_threshold if least is None else min(config.score_threshold, least)
            outputs = model.network(model.normalise(image, size[None]))
            # Not the criterion's own, which keeps the anchors of one size.
            grid = build_grid(model.config.anchors, outputs.shapes(), image.device)
            scores, labels, boxes = ranked(outputs, model.criterion, grid, config, threshold)
            boxes = clip(boxes, size[None, None])
            scores = torch.where(kept(scores, boxes, config, least), scores, 0.0)
            return boxes[0], scores[0], labels[0]

    return Candidates()


def _suppressed(proto: Any, model: Detector, options: Any) -> Any:
    """The graph ``proto`` of candidates with suppression within each class after it."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph, prefix = proto.graph, "suppression."

    def constant(name: str, value: Any, kind: Any = np.int64) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, kind), prefix + name))
        return prefix + name

    def step(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    boxes, scores, labels = (output.name for output in graph.output)
    first = constant("first", [0])
    classes = constant("classes", np.arange(len(model.categories))[:, None])
    of_class = step("Equal", [labels, classes], prefix + "of_class")  # (C, K)
    of_class = step("Where", [of_class, scores, constant("none", 0.0, np.float32)], prefix + "class_scores")
    limits = (
        constant("no_limit", [2**31 - 1]),
        constant("iou", [model.config.postprocess.nms_iou], np.float32),
        constant("least", [0.0], np.float32),  # exclusive
    )
    all_boxes = step("Unsqueeze", [boxes, first], prefix + "all_boxes")  # (1, K, 4)
    all_scores = step("Unsqueeze", [of_class, first], prefix + "all_scores")  # (1, C, K)
    # One row (image, class, candidate) for each survivor, class by class.
    selected = step("NonMaxSuppression", [all_boxes, all_scores, *limits], prefix + "selected")
    survivors = step("Gather", [selected, constant("candidate", 2)], prefix + "survivors", axis=1)
    survivor_scores = step("Gather", [scores, survivors], prefix + "survivor_scores")
    count = step("Shape", [survivor_scores], prefix + "count")
    wanted = step("Min", [count, constant("most", [options.max_detections])], prefix + "wanted")
    graph.node.append(helper.make_node("TopK", [survivor_scores, wanted], ["scores", prefix + "order"]))
    best = step("Gather", [survivors, prefix + "order"], prefix + "best")
    step("Gather", [boxes, best], "boxes")
    step("Gather", [labels, best], "labels")
    for dimension, name in zip(graph.input[0].type.tensor_type.shape.dim[2:], ("height", "width"), strict=True):
        dimension.dim_param = name
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["detections", 4]))
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["detections"]))
    graph.output.append(helper.make_tensor_value_info("labels", TensorProto.INT64, ["detections"]))
    description = {
        "categories": [{"id": category.id, "name": category.name} for category in model.categories],
        "input": {"short_side": model.short_side, "long_side": model.long_side, "resize": model.resize},
    }
    helper.set_model_props(proto, {"detsweep": json.dumps(description)})
    return proto


if __name__ == "__main__":
    sys.exit(main())
