"""What a ``search:`` section says, and what is refused of it before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from detector.errors import InputError
from orchestrator.holdout import second_half
from orchestrator.search_spec import Domain, Scheduler, Search
from orchestrator.sweep import main
from tests.orchestrator.searches import SEARCH, plan_of, write_search


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("  samples: 12\n", "  sample: 12\n", r'line \d+: unknown key "sample"; did you mean "samples"'),
        ("model.assigner.topk:", "model.assigner.topc:", r'line 11: unknown key "model.assigner.topc"; .*topk'),
        ("uniform: [0, 2]", "uniform: [2, 0]", r"line 10: .*uniform is \[2, 0\], which is empty"),
        ("uniform: [0, 2]", "uniform: [1, 1]", r"uniform is \[1, 1\], which is empty"),
        ("uniform: [0, 2]", "loguniform: [0, 2]", "must begin above 0"),
        ("uniform: [0, 2]", "uniform: [0, 2], choice: [1]", "this has uniform and choice"),
        ("{uniform: [0, 2]}", "{}", "this has none of them"),
        ("uniform: [0, 2]", "choice: []", "choice"),
        ("uniform: [0, 2]", "choice: [1, 1]", "with a value twice"),
        ("uniform: [0, 2]", "uniform: [-1, 2]", r"search.parameters, model.assigner.predicted_weight: .* -1"),
        ("randint: [5, 12]", "randint: [0, 12]", r"search.parameters, model.assigner.topk: .*topk is 0"),
        ("model.assigner.topk:", "evaluation.batch_size:", "doesn't change what is trained"),
        ("reference: both", "reference: bth", 'unknown row "bth"; did you mean "both"'),
        ("winner_seeds: [0, 1, 2]", "winner_seeds: [0, 7]", "the samples are trained with seed 7"),
        ("winner_seeds: [0, 1, 2]", "winner_seeds: [1, 1]", "list each seed once"),
        ("winner_seeds: [0, 1, 2]", "winner_seeds: []", "winner_seeds"),
        ("  winner_seeds: [0, 1, 2]\n", "", "search has no winner_seeds"),
        ("samples: 12", "samples: 0", "search.samples is 0"),
        ("reduction_factor: 3", "reduction_factor: 1", "reduction_factor is 1"),
        ("grace_period: 10", "grace_period: 0", "grace_period is 0"),
        ("grace_period: 10", "name: hyperband", 'must be "asha"'),
        ("samples: 12", "metric: AP42", "search.metric"),
        ("samples: 12", "holdout: test", "there is no data.test, so nothing is left that the search doesn't see"),
        (
            "    model.assigner.predicted_weight: {uniform: [0, 2]}\n",
            "    model.assigner.predicted_weight: {choice: [0, 1]}\n"
            "    model.assigner.anchor_weight: {choice: [0, 1]}\n",
            "search.parameters can give .*predicted_weight=0, .*anchor_weight=0.*both 0",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in SEARCH
    write_search(tmp_path, SEARCH.replace(old, new))
    with pytest.raises(InputError, match=expected):
        plan_of(tmp_path, "describe")
    assert not (tmp_path / "storage").exists()


def test_a_weight_of_zero_at_the_end_of_a_range_is_no_mistake(tmp_path: Path) -> None:
    both = SEARCH.replace(
        "    model.assigner.topk", "    model.assigner.anchor_weight: {uniform: [0, 2]}\n    model.assigner.topk"
    )
    write_search(tmp_path, both)
    plan = plan_of(tmp_path, "describe")
    assert plan.search is not None
    assert len(plan.search.spec.parameters) == 3


def test_a_searched_key_has_no_value_on_the_command_line(tmp_path: Path) -> None:
    write_search(tmp_path)
    with pytest.raises(InputError, match=r"--set model.assigner.topk=5: model.assigner.topk is searched"):
        plan_of(tmp_path, "describe", set=("model.assigner.topk=5",))
    with pytest.raises(InputError, match="--seeds has 7"):
        plan_of(tmp_path, "describe", seeds=(7,))
    with pytest.raises(InputError, match='--only leaves out "both", the reference'):
        plan_of(tmp_path, "describe", only=("plain",))


def test_the_winner_may_be_judged_on_a_test_split(tmp_path: Path) -> None:
    write_search(tmp_path, SEARCH.replace("samples: 12", "holdout: test"))
    plan = plan_of(tmp_path, "describe", set=("data.test=other",))
    assert plan.search is not None
    assert plan.search.template.config.data.val == "val"
    assert {row.config.data.val for row in plan.rows} == {"other"}
    assert {row.config.data.test for row in plan.rows} == {None}
    with pytest.raises(InputError, match=r"has the same images as data\.val"):
        plan_of(tmp_path, "describe", set=("data.test=val",))


def test_halves_are_equal_disjoint_and_the_same_for_every_order_of_names() -> None:
    names = [f"{number:04}.jpg" for number in range(101)]
    half = second_half(names)
    assert len(half) == 50
    assert half < set(names)
    assert second_half(list(reversed(names))) == half
    # Neither the first half nor every second name.
    assert 10 < len(half & set(names[:50])) < 40
    assert 10 < len(half & set(names[::2])) < 40


def test_both_halves_are_splits_of_their_own_with_the_same_training_images(tmp_path: Path) -> None:
    write_search(tmp_path)
    plan = plan_of(tmp_path)
    assert plan.search is not None
    root = Path(str(plan.rows[0].config.data.root))
    documents = [json.loads((root / "annotations" / f"val-{part}.json").read_text()) for part in ("search", "judge")]
    files = [{image["file_name"] for image in document["images"]} for document in documents]
    assert files[0] | files[1] == {"1.jpg", "2.jpg"}
    assert not files[0] & files[1]
    for document in documents:
        ids = {image["id"] for image in document["images"]}
        assert {one["image_id"] for one in document["annotations"]} == ids
    assert plan.search.template.train is not None
    assert plan.search.template.train.root == str(tmp_path / "data"), "a training is named by its data, not its place"
    assert plan_of(tmp_path).rows == plan.rows
    described = plan_of(tmp_path, "describe")
    assert described.search is not None
    assert described.search.key == plan.search.key


def test_one_image_can_t_be_halved(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_search(tmp_path)
    path = tmp_path / "data" / "annotations" / "val.json"
    document = json.loads(path.read_text())
    document["images"], document["annotations"] = document["images"][:1], document["annotations"][:1]
    path.write_text(json.dumps(document))
    words = [str(tmp_path / "hunt.yaml"), "--storage", str(tmp_path / "storage")]
    for options in ([], ["--dry-run"]):
        assert main([*words, *options]) == 2
        assert "has 1 image, which can't be halved, so nothing is left" in capfd.readouterr().err
    assert not (tmp_path / "storage" / "sweeps" / "hunt").exists()


def test_a_half_without_a_box_is_refused(tmp_path: Path) -> None:
    write_search(tmp_path)
    path = tmp_path / "data" / "annotations" / "val.json"
    document = json.loads(path.read_text())
    document["annotations"] = document["annotations"][:1]
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"val-(search|judge).json has no box to evaluate against"):
        plan_of(tmp_path)


def test_the_grace_period_is_a_part_of_the_training_or_iterations() -> None:
    assert [Scheduler(grace_period=period).grace_steps(90_000) for period in (0.25, 1, 500, 1e6)] == [
        22_500, 1, 500, 90_000,
    ]  # fmt: skip
    assert Scheduler(grace_period=0.001).grace_steps(100) == 1


def test_values_are_rounded_inside_their_range() -> None:
    assert Domain(uniform=(0, 2)).rounded(1.23456) == 1.235
    assert Domain(uniform=(0, 1.23451)).rounded(1.2345) == 1.234
    assert Domain(uniform=(0, 1.99996)).rounded(1.99996) == 1.99996
    assert Domain(choice=[1.23456]).rounded(1.23456) == 1.23456
    assert Domain(randint=(1, 3)).ends == (1, 2)
    assert Search(parameters={"model.assigner.topk": Domain(randint=(1, 3))}, winner_seeds=[1]).samples == 24


def test_an_include_can_t_search(tmp_path: Path) -> None:
    write_search(tmp_path)
    (tmp_path / "both.yaml").write_text("name: both\ntitle: t\ninclude: [hunt.yaml]\n")
    from orchestrator.spec import load_spec

    with pytest.raises(InputError, match="can't include others, or be included"):
        load_spec(str(tmp_path / "both.yaml"))
