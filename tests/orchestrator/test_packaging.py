"""What a run's model is to MLflow: loaded without pickle, with signature, example and licence, and served over HTTP."""

import io
import json
import pickletools
import zipfile
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.models import Model
from PIL import Image

import detector
from detector.config import ModelConfig
from detector.errors import InputError
from detector.serving import Served, _load_pyfunc
from orchestrator.ledger import Ledger
from orchestrator.packaging import IMAGENET, initial_licence, write_package
from tests.orchestrator.test_registry import (  # noqa: F401
    empty_database,
    finish,
    registering,
    saved,
    storage,
)  # fmt: skip
from tests.orchestrator.test_tracking import STEPS, begin, opened, train


@pytest.fixture
def logged(storage, saved):  # noqa: F811
    """A finished row's run: the tracking URI and the run's id."""
    plan = registering(storage, {"<b>row</b>": "a"})
    ledger = Ledger(storage)
    row = plan.rows[0]
    begin(ledger, plan, row)
    train(ledger, row, 0, STEPS - 1)
    finish(ledger, row, saved, AP=30.0)
    assert opened(plan, ledger).finish("FINISHED") is None
    run_id = ledger.run_id(plan.key, row.row, 0)
    return plan.tracking_uri, run_id, Path(MlflowClient(plan.tracking_uri).download_artifacts(run_id, "model"))


def picture(width=90, height=60) -> tuple[Image.Image, bytes]:
    image = Image.effect_noise((width, height), 60).convert("RGB")
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return image, stream.getvalue()


def test_nothing_in_the_artifacts_is_a_pickle(logged):
    uri, run_id, _ = logged
    whole = Path(MlflowClient(uri).download_artifacts(run_id, ""))
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert len(files) > 9
    for path in files:
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib", ".py", ".pyc"}, path
        assert not zipfile.is_zipfile(path), path
        assert not looks_pickled(path.read_bytes()), path


def looks_pickled(content: bytes) -> bool:
    """Whether ``content`` begins as pickles do, and reads as one to its end."""
    try:
        operations = [operation.name for operation, _, _ in pickletools.genops(content)]
    except Exception:
        return content[:1] == b"\x80" and content[1:2] in b"\x02\x03\x04\x05"
    return operations[-1] == "STOP"


def test_the_search_for_pickles_finds_them(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "a")
    assert zipfile.is_zipfile(tmp_path / "a")
    import pickle

    assert all(looks_pickled(pickle.dumps({"a": [1, 2]}, protocol)) for protocol in range(6))
    assert not looks_pickled(b'{"a": 1}')


def test_pyfunc_finds_what_detector_load_finds(logged, monkeypatch):
    uri, run_id, folder = logged
    image, content = picture()
    expected = detector.load(f"runs:/{run_id}/model", tracking_uri=uri, device="cpu").predict(image)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    finally:
        mlflow.set_tracking_uri(None)
    assert len(expected) > 2
    (found,) = model.predict(pd.DataFrame({"image": [content]}))
    assert torch.allclose(torch.tensor(found["boxes"]).reshape(-1, 4), expected.boxes.cpu(), atol=1e-4)
    assert found["names"] == expected.names
    (few,) = model.predict(pd.DataFrame({"image": [content]}), params={"max_detections": 2})
    assert few["scores"] == found["scores"][:2]
    assert Model.load(str(folder)).signature.inputs.input_names() == ["image"]
    assert model.predict(model.input_example)[0].keys() == found.keys()


def test_the_mlmodel_file_says_what_mlflows_users_look_for(logged):
    uri, run_id, folder = logged
    described = yaml.safe_load((folder / "MLmodel").read_text())
    assert described["run_id"] == run_id
    flavour = described["flavors"]["python_function"]
    assert flavour["loader_module"] == "detector.serving"
    assert "code" not in flavour or flavour["code"] is None
    assert described["metadata"]["licence_of_initial_weights"] == "none: training began with random weights"
    assert described["metadata"]["row"] == "<b>row</b>"
    assert "none: random" in (folder / "LICENCES.md").read_text()
    requirements = (folder / "requirements.txt").read_text().split()
    assert requirements[0] == f"detsweep=={detector.__version__}"
    assert f"mlflow=={mlflow.__version__}" in requirements
    assert not any("+" in line for line in requirements)
    conda = yaml.safe_load((folder / "conda.yaml").read_text())
    assert conda["dependencies"][-1] == {"pip": requirements}
    assert yaml.safe_load((folder / "python_env.yaml").read_text())["dependencies"] == ["-r requirements.txt"]
    example = json.loads((folder / "serving_input_example.json").read_text())
    assert example["dataframe_split"] == json.loads((folder / "input_example.json").read_text())
    history = json.loads(MlflowClient(uri).get_run(run_id).data.tags["mlflow.log-model.history"])
    assert [(one["run_id"], one["artifact_path"]) for one in history] == [(run_id, "model")]


def test_written_twice_it_is_the_same(tmp_path):
    texts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_package(
            tmp_path / name, ModelConfig(weights="none"), run_id="a" * 32, training="t", finished=5.0, notes={}
        )
        texts.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ({"weights": "none"}, "none: training began with random weights"),
        ({"weights": "imagenet", "backbone": "r50"}, IMAGENET),
        ({"weights": "/home/me/secret/w.pth"}, "not known here: those of w.pth, which the training was given as"),
        ({"init": "mmdet:atss_r50_fpn_1x_coco"}, "Apache-2.0"),
        ({"init": "/a/b/atss.pth"}, "not known here: those of atss.pth"),
        ({"weights": "imagenet", "backbone": "timm:resnet50.a1_in1k"}, "timm.get_pretrained_cfg('resnet50.a1_in1k')"),
    ],
)
def test_the_licence_of_the_initial_weights(model, licence):
    said = initial_licence(ModelConfig.model_validate(model))
    assert licence in said
    assert "/" not in said.replace("docs/licences.md", "").split(";")[0] or "mmdet" in str(model)


def test_what_is_no_image_is_said_by_its_row(saved):  # noqa: F811
    served = _load_pyfunc(str(saved))
    assert isinstance(served, Served)
    _, content = picture()
    with pytest.raises(InputError, match='row 1: "image" is no image file'):
        served.predict(pd.DataFrame({"image": [content, b"nonsense"]}))
    with pytest.raises(InputError, match='no column "image"'):
        served.predict(pd.DataFrame({"picture": [content]}))
    with pytest.raises(InputError, match='row 0: "image" is no image file'):
        served.predict(pd.DataFrame({"image": ["not base64!"]}))
