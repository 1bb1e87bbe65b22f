"""``register: {name, metric}`` of a sweep file: its winner becomes a version of a registered model, if it is better.

The winner is the row with the highest mean of the metric over its seeds, on the validation split, and of that row the
training with the highest. It takes the alias ``best`` from the present holder only where it has a higher figure on the
same data: split by digest, size of the images and number of detections. What was decided is kept as

    STORAGE/sweeps/KEY/registered.json   {"name", "metric", "version", "row", "seed", "value", "registered", "sentence"}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detector.document import listed
from orchestrator.fields import METRICS
from orchestrator.files import read_json
from orchestrator.identity import digest, evaluation_settings
from orchestrator.results import Mean, mean

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from orchestrator.ledger import Ledger
    from orchestrator.plan import Plan, PlannedRow
    from orchestrator.runs import RunStore

ALIAS = "best"


@dataclass(frozen=True)
class Winner:
    """What a sweep would register."""

    row: PlannedRow
    value: float
    """Its own figure of the metric, in percent."""
    over_seeds: Mean
    """That of its row."""
    rows: int
    """How many rows it was chosen from."""


def register(store: RunStore, plan: Plan, ledger: Ledger) -> bool:
    """Registers the winner of a complete sweep, if its file asks for that and it is to be; keeps what was decided.

    Returns whether something else was decided than the last time. Raises what MLflow raises; may be repeated.
    """
    if plan.register is None or (plan.search is not None and plan.search.winner is None):
        return False
    lacking = (*plan.left_out, *plan.partly)
    if lacking:
        if (kept(plan) or {}).get("version") is not None:
            return False  # what was decided of the whole table stands
        found: Winner | str = (
            f"nothing was registered: {listed(lacking, 3)} "
            f"{'is' if len(lacking) == 1 else 'are'} not finished, and the winner is chosen among all rows; run "
            "the sweep without --only and --seeds"
        )
    else:
        found = choose(plan.reported, ledger)
    if isinstance(found, str):
        decided: dict[str, Any] = {"version": None, "registered": False, "sentence": found}
    else:
        decided = _decided(store, plan, ledger, found)
    decided = {"name": plan.register.name, "metric": plan.register.metric} | decided
    if _same(kept(plan), decided):
        return False
    decided.pop("again", None)
    key = f"sweeps/{plan.key}/registered.json"
    ledger.update(key, lambda _: decided)
    ledger.place.fetch(key)
    return True


def kept(plan: Plan) -> dict[str, Any] | None:
    """What was decided at the sweep's last end; None where it registers nothing, or has not ended."""
    if plan.register is None:
        return None
    try:
        found = read_json(plan.folder / "registered.json")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "sentence" in found else None


def _same(before: dict[str, Any] | None, decided: dict[str, Any]) -> bool:
    """Whether nothing new was decided; that a version is there already says of itself why it was registered."""
    if before is None:
        return False
    keys = ("name", "metric", "version", "row", "seed", "value")
    if decided.get("again") and all(before.get(key) == decided.get(key) for key in keys):
        return True
    return before == decided


def choose(plan: Plan, ledger: Ledger) -> Winner | str:
    """The winner among the finished rows of ``plan``, or a sentence that says why there is none."""
    assert plan.register is not None
    metric = plan.register.metric
    values: dict[str, list[tuple[PlannedRow, float | None]]] = {}
    for row in plan.rows:
        record = ledger.record(row.identity, row.evaluations)
        value = record.metrics.get(metric) if record.state == "finished" else None
        values.setdefault(row.row, []).append((row, value))
    rated = {name: found for name, found in values.items() if all(value is not None for _, value in found)}
    if not rated:
        return f"nothing was registered: no row has {metric} for all of its seeds"
    data = {name: measured_on(found[0][0]) for name, found in rated.items()}
    if len(set(data.values())) > 1:
        first = next(iter(data))
        others = [name for name in data if data[name] != data[first]]
        return (
            f"nothing was registered: {listed(others, 3)} and {first} are evaluated on different data (data.val, "
            "data.root, sizes of the images or number of detections), and figures on different data rank nothing"
        )
    means = {name: mean(value for _, value in found) for name, found in rated.items()}
    best = max(rated, key=lambda name: _value(means[name]))
    row, value = max(rated[best], key=lambda pair: pair[1] if pair[1] is not None else float("-inf"))
    average = means[best]
    assert value is not None
    assert average is not None
    return Winner(row, value, average, len(rated))


def _value(average: Mean | None) -> float:
    return float("-inf") if average is None else average.value


def measured_on(row: PlannedRow) -> str:
    """A hash of what figures of ``row`` can be compared by; how a model turns outputs into boxes is its own affair."""
    assert row.val is not None
    settings = evaluation_settings(row.config, split_digest=row.val.digest)
    compared = {key: settings[key] for key in ("split_digest", "short_side", "long_side", "resize")}
    return digest(compared | {"max_detections": settings["postprocess"]["max_detections"]})[:16]


def _decided(store: RunStore, plan: Plan, ledger: Ledger, winner: Winner) -> dict[str, Any]:
    assert plan.register is not None
    client = store.client
    name, metric = plan.register.name, plan.register.metric
    known = {"row": winner.row.row, "seed": winner.row.seed, "value": winner.value}
    training = ledger.record(winner.row.identity).training or ""
    chosen, on = _why(winner, metric), measured_on(winner.row)
    versions, holder = _known(client, name)
    if holder is not None:
        tags = holder.tags or {}
        refused = None
        if (tags.get("training"), tags.get("measured_on")) == (training, on):
            sentence = f"{chosen} is {name} version {holder.version}, which has the alias {ALIAS}"
            return {**known, "version": int(holder.version), "registered": True, "sentence": sentence, "again": True}
        if "measured_on" not in tags or metric not in tags:
            refused = f"was not registered by a sweep with a figure of {metric}, so there is nothing to compare with"
        elif tags["measured_on"] != on:
            refused = "was measured on other data or at another size, so the figures can't be compared"
        elif winner.value <= float(tags[metric]):
            refused = f"has {metric} {float(tags[metric]):.2f} on the same data"
        if refused is not None:
            sentence = (
                f"{chosen} was not registered: {name} version {holder.version}, which has the alias {ALIAS}, {refused}"
            )
            return {**known, "version": None, "registered": False, "sentence": sentence}
    version = next((v for v in versions if _is_of(v, training, on)), None)
    if version is None and store.verified(ledger.run_id(plan.key, winner.row.row, winner.row.seed), {}) is None:
        # Its row isn't selected, and was trained with another server or while this one was away.
        sentence = f"{chosen} was not registered: this tracking server has no run of it; orchestrator.sync brings it"
        return {**known, "version": None, "registered": False, "sentence": sentence}
    if version is None:
        version = _make(client, plan, ledger, winner, {"training": training, "measured_on": on}, chosen)
    client.set_registered_model_alias(name, ALIAS, version.version)
    if holder is None:
        why = f"nothing had the alias {ALIAS}"
    else:
        why = f"it beats version {holder.version} with {metric} {float(holder.tags[metric]):.2f} on the same data"
    sentence = f"{chosen} was registered as {name} version {version.version} with the alias {ALIAS}: {why}"
    return {**known, "version": int(version.version), "registered": True, "sentence": sentence}


def _why(winner: Winner, metric: str) -> str:
    row, average = winner.row, winner.over_seeds
    among = f"the highest of {winner.rows} rows" if winner.rows > 1 else "the only row"
    if average.n == 1:
        return f"row {row.row}, seed {row.seed}, with {metric} {winner.value:.2f} on {_split(row)} ({among}),"
    return (
        f"row {row.row}, mean {metric} {average.value:.2f} over {average.n} seeds on {_split(row)} ({among}), of it "
        f"seed {row.seed} with {winner.value:.2f} (the highest, which flatters it),"
    )


def _split(row: PlannedRow) -> str:
    return row.val.split if row.val is not None else row.config.data.val


def _known(client: MlflowClient, name: str) -> tuple[list[ModelVersion], ModelVersion | None]:
    """Versions of the registered model, which is made if need be, and the one with the alias."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_registered_model(name, description="Winners of sweeps; the alias best has the best one so far.")
        return [], None
    versions = list(client.search_model_versions(f"name = '{name}'"))
    at = {str(one.version): one for one in versions}
    return versions, at.get(str(model.aliases.get(ALIAS)))


def _is_of(version: ModelVersion, training: str, on: str) -> bool:
    tags = version.tags or {}
    return bool(training) and (tags.get("training"), tags.get("measured_on")) == (training, on)


def _make(
    client: MlflowClient, plan: Plan, ledger: Ledger, winner: Winner, tags: dict[str, str], chosen: str
) -> ModelVersion:
    assert plan.register is not None
    row = winner.row
    record = ledger.record(row.identity, row.evaluations)
    run_id = ledger.run_id(plan.key, row.row, row.seed)
    assert run_id is not None
    figures: dict[str, str] = {key: str(record.metrics[key]) for key in METRICS if record.metrics.get(key) is not None}
    more = {"sweep": plan.key, "row": row.row, "seed": str(row.seed), "identity": row.identity, **figures}
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    return client.create_model_version(
        plan.register.name, source, run_id=run_id, tags={**tags, **more}, description=chosen.rstrip(",")
    )
