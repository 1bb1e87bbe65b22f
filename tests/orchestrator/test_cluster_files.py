"""What starts clusters: manifests against Ray's own schema and the fields that their resource definitions require."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
FILES = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]


def script(name: str) -> ModuleType:
    loader = SourceFileLoader(name, str(CLUSTER / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def cluster_specs() -> Iterator[dict[str, Any]]:
    (job,) = documents("kuberay/rayjob.yaml")
    (cluster,) = documents("kuberay/raycluster.yaml")
    yield job["spec"]["rayClusterSpec"]
    yield cluster["spec"]


def test_the_cloud_file_fits_rays_schema() -> None:
    from jsonschema import Draft7Validator

    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    schema = json.loads((Path(found.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    (document,) = documents("aws.yaml")
    assert list(Draft7Validator(schema).iter_errors(document)) == []
    head, spot = document["available_node_types"]["head"], document["available_node_types"]["spot"]
    assert document["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in head["node_config"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (spot["min_workers"], head["resources"]) == (0, {"CPU": 0})
    for command in (*document["head_start_ray_commands"], *document["worker_start_ray_commands"]):
        assert "ray start" not in command or "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in document["head_start_ray_commands"][1]


def test_every_storage_belongs_to_the_user_of_the_image() -> None:
    dockerfile = (CLUSTER / "docker" / "Dockerfile").read_text()
    base = dockerfile[dockerfile.index(" AS base") : dockerfile.index(" AS cpu")]
    assert "useradd --create-home --uid 1000 --user-group ray" in base
    assert "mkdir /storage /cache && chown ray:ray /storage /cache" in base
    for spec in cluster_specs():
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            context = group["template"]["spec"]["securityContext"]
            assert (context["runAsUser"], context["fsGroup"]) == (1000, 1000)
    (cloud,) = documents("aws.yaml")
    commands = cloud["initialization_commands"]
    assert "mount -t nfs4" in commands[-2]
    assert commands[-1].endswith("chown 1000:1000 /shared/detsweep")
    assert "--storage /shared/detsweep " in (CLUSTER / "aws.yaml").read_text()
    # Volumes are mounted where the image has folders of its user's.
    assert "storage:/storage" in documents("compose.yaml")[0]["services"]["head"]["volumes"]


def test_a_resubmitted_job_resumes_within_bounds() -> None:
    (job,) = documents("kuberay/rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["entrypoint"].startswith("python -m orchestrator.sweep sweeps/table3.yaml ")
    assert "--fresh" not in spec["entrypoint"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert "kueue.x-k8s.io/queue-name" in (CLUSTER / "kuberay" / "rayjob.yaml").read_text()
    assert "kueue.x-k8s.io/queue-name" not in json.dumps(job)


def test_both_clusters_are_the_same() -> None:
    one, other = cluster_specs()
    assert one == other


@pytest.mark.parametrize("spec", cluster_specs(), ids=["RayJob", "RayCluster"])
def test_pods_have_what_their_definitions_require_and_bounds(spec: dict[str, Any]) -> None:
    assert spec["authOptions"] == {"mode": "token"}
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert {"rayStartParams", "template"} <= head.keys()
    assert {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"} <= workers.keys()
    assert (workers["minReplicas"], workers["replicas"]) == (0, 0)
    assert workers["maxReplicas"] >= 1
    affinity = head["template"]["spec"]["affinity"]["nodeAffinity"]
    assert "requiredDuringSchedulingIgnoredDuringExecution" in affinity
    for template in (head["template"], workers["template"]):
        (container,) = template["spec"]["containers"]
        assert {"memory", "ephemeral-storage"} <= container["resources"]["limits"].keys()
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert set(mounts.values()) == set(volumes)
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert "persistentVolumeClaim" in volumes[mounts["/storage"]]
        assert any("secretRef" in source for source in container["envFrom"])
        # Ray's start parameters and Kubernetes' variables are strings.
        assert all(isinstance(entry["value"], str) for entry in container["env"])
    assert all(isinstance(value, str) for value in {**head["rayStartParams"], **workers["rayStartParams"]}.values())


def test_claims_are_shared_by_all_nodes() -> None:
    for claim in documents("kuberay/storage.yaml"):
        assert claim["kind"] == "PersistentVolumeClaim"
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        assert claim["spec"]["resources"]["requests"]["storage"]


def test_compose_has_its_parts_on_loopback_and_its_secrets_from_outside() -> None:
    (document,) = documents("compose.yaml")
    services = document["services"]
    assert {"postgres", "objects", "mlflow", "head", "worker", "gpu-worker"} <= services.keys()
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for name, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|TOKEN$", name):
                assert value.startswith("${"), name
        assert {"image"} <= service.keys()
    for name in ("head", "worker"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token"
    variables = set(re.findall(r"\$\{(\w+):\?", (CLUSTER / "compose.yaml").read_text()))
    assert variables <= set(re.findall(r"^(\w+)=", (CLUSTER / "example.env").read_text(), re.MULTILINE))
    assert set(document["volumes"]) == {"storage", "postgres", "objects"}


def test_the_image_has_the_targets_that_are_built_and_what_they_copy() -> None:
    text = (CLUSTER / "docker" / "Dockerfile").read_text()
    targets = set(re.findall(r"^FROM \S+ AS (\w+)", text, re.MULTILINE))
    assert {"cpu", "cuda", "mlflow"} <= targets
    kept = set(re.findall(r"^!(\S+)", (CLUSTER.parent / ".dockerignore").read_text(), re.MULTILINE))
    for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE):
        for source in line.split():
            assert (CLUSTER.parent / source).exists()
            assert source in kept


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(CLUSTER).as_posix() for path in FILES])
def test_no_secret_is_written_down(path: Path) -> None:
    for name, value in re.findall(r"^\s*-?\s*(\w*(?:PASSWORD|SECRET_KEY|TOKEN))[:=] *(\S*)$", path.read_text(), re.M):
        assert not value or value.startswith(('"${', "${", "$(", "...", '"')), name


def test_the_installed_package_has_them() -> None:
    project = (CLUSTER.parent / "pyproject.toml").read_text()
    assert '"cluster" = "orchestrator/cluster"' in project
    for name in ("start_local", "submit"):
        assert os.access(CLUSTER / name, os.X_OK)


def test_what_is_sent_is_neither_data_nor_history(tmp_path: Path) -> None:
    sent_ones = ("own.yaml", "bases/small.yaml", "plugins/mine.py")
    others = (".git/config.yaml", ".venv/x.py", "data/1.jpg", "env/pyvenv.cfg", "env/lib/site.py", "detector/model.py")
    for name in (*sent_ones, *others, "a/__pycache__/b.py", "model.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    sent = {path.relative_to(tmp_path).as_posix() for path in script("submit").chosen(tmp_path)}
    assert sent == set(sent_ones)


def test_the_size_is_checked_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("x" * 11_000_000)
    command = [sys.executable, str(CLUSTER / "submit"), "--send", str(tmp_path), "own.yaml"]
    environment = {**os.environ, "RAY_ADDRESS": "http://127.0.0.1:9"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "error: 11.0 MB of YAML and Python in" in done.stderr
    assert "the largest file is own.yaml" in done.stderr


def test_a_local_cluster_starts_in_no_folder_with_files_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start_local = script("start_local")
    monkeypatch.setattr(start_local, "_ensure_token", lambda: None)
    monkeypatch.setattr(start_local, "_launch", lambda *_: "127.0.0.9")
    for name in ("nodes.json", "thesis.tex", "ray/mine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    before = sorted(path.as_posix() for path in tmp_path.rglob("*"))
    for words in (["start"], ["stop"]):
        start_local.main([*words, "--folder", str(tmp_path)])
        assert sorted(path.as_posix() for path in tmp_path.rglob("*")) == before
    assert "holds files that are no cluster's; name a new or an empty folder by --folder" in capsys.readouterr().err
    for allowed in (tmp_path / "new" / "one", tmp_path / "new" / "empty"):
        if allowed.name == "empty":
            allowed.mkdir()
        assert start_local.main(["start", "--folder", str(allowed)]) == 0


def test_a_local_cluster_clears_what_the_one_before_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_local = script("start_local")
    monkeypatch.setattr(start_local, "_ensure_token", lambda: None)
    monkeypatch.setattr(start_local, "_launch", lambda *_: "127.0.0.9")
    for name in ("ray/session/log", "127.0.0.2.log", "127.0.0.3.log", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert start_local.main(["start", "--folder", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
