"""The ``search:`` section of a sweep file: which keys are searched, over what, and how the winner is judged.

search:
  parameters:
    model.assigner.predicted_weight: {uniform: [0, 2]}
    model.assigner.topk: {choice: [5, 9, 13]}
  reference: "1:1"                 # the row that the winner is compared with; default: the first
  samples: 24
  scheduler: {name: asha, grace_period: 0.25, reduction_factor: 3}
  winner_seeds: [1, 2, 3, 4, 5]    # seeds that no sample was trained with
  holdout: halves                  # or test: the winner is judged on data.test
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from detector.config import Section, Seed, TrainingConfig
from detector.document import Document, suggestion
from detector.errors import InputError
from detector.fields import PositiveInt
from detector.keys import check_key, keys
from detector.refusals import checked, short
from orchestrator.identity import deciding

Metric = Literal["AP", "AP50", "AP75", "APs", "APm", "APl"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Text = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value),
    StringConstraints(min_length=1),
]
DIGITS = 4
"""Significant digits of a sampled number: what names a sample is then exactly what it was trained with."""
_MOST_CORNERS = 256


class Domain(Section):
    """What one key is sampled from; exactly one of these."""

    uniform: tuple[_Finite, _Finite] | None = None
    """Any number between the two."""
    loguniform: tuple[_Finite, _Finite] | None = None
    """Any number between the two, which are above 0, evenly in its logarithm."""
    randint: tuple[int, int] | None = None
    """A whole number from the first to below the second."""
    choice: Annotated[list[Any], Field(min_length=1)] | None = None
    """One of these values."""

    @model_validator(mode="after")
    def _one_that_is_not_empty(self) -> Domain:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a parameter is sampled from one of uniform, loguniform, randint and choice, and this has "
                f"{' and '.join(given) or 'none of them'}; write {{uniform: [0, 2]}}, say"
            )
        name = given[0]
        if name == "choice":
            assert self.choice is not None
            if any(value in self.choice[:index] for index, value in enumerate(self.choice)):
                raise ValueError(f"choice is {short(self.choice)}, with a value twice; list each once")
            return self
        low, high = getattr(self, name)
        if not low < high:
            raise ValueError(f"{name} is [{low:g}, {high:g}], which is empty; the smaller number stands first")
        if name == "loguniform" and low <= 0:
            raise ValueError(f"loguniform is [{low:g}, {high:g}], but must begin above 0")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all: all of a choice, the first and the last of a range."""
        if self.choice is not None:
            return tuple(self.choice)
        if self.randint is not None:
            return tuple(dict.fromkeys((self.randint[0], self.randint[1] - 1)))
        return self.uniform or self.loguniform or ()

    @property
    def middle(self) -> Any:
        """A value from inside."""
        if self.choice is not None:
            return self.choice[len(self.choice) // 2]
        if self.randint is not None:
            return (self.randint[0] + self.randint[1] - 1) // 2
        if self.loguniform is not None:
            return math.sqrt(self.loguniform[0] * self.loguniform[1])
        assert self.uniform is not None
        return (self.uniform[0] + self.uniform[1]) / 2

    @property
    def discrete(self) -> bool:
        """Whether each of its values has a probability."""
        return self.choice is not None or self.randint is not None

    def rounded(self, value: Any) -> Any:
        """``value`` with at most ``DIGITS`` significant digits, inside the range."""
        low_high = self.uniform or self.loguniform
        return value if low_high is None else min(max(float(f"{value:.{DIGITS}g}"), low_high[0]), low_high[1])


class Scheduler(Section):
    """Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020)."""

    name: Literal["asha"] = "asha"
    """The rule."""
    grace_period: Annotated[float, Field(gt=0, le=1e9)] = 0.25
    """Steps before the first decision: below 1 a part of the training, from 1 on iterations."""
    reduction_factor: Annotated[int, Field(ge=2, le=100)] = 3
    """At each rung the best of so many goes on; the rungs are the grace period times its powers."""

    def grace_steps(self, iterations: int) -> int:
        """Steps before the first decision of a training of so many iterations."""
        steps = self.grace_period * iterations if self.grace_period < 1 else self.grace_period
        return max(1, min(round(steps), iterations))


class Search(Section):
    """A search beyond the rows."""

    parameters: Annotated[dict[str, Domain], Field(min_length=1)]
    """What is searched, by configuration key."""
    reference: _Text | None = None
    """Row that the winner is compared with; its other keys are those of every sample. Null: the first."""
    metric: Metric = "AP"
    """What is best,"""
    mode: Literal["max", "min"] = "max"
    """highest or lowest."""
    samples: PositiveInt = 24
    """Configurations to try in all."""
    seed: Seed = 0
    """Seed of the sampling."""
    scheduler: Scheduler = Scheduler()
    """When a sample is stopped early."""
    winner_seeds: Annotated[list[Seed], Field(min_length=1)]
    """Seeds with which the winner and all rows of the file are trained at the end; not that of the samples."""
    holdout: Literal["halves", "test"] = "halves"
    """On what the winner is judged that the search didn't see: the second half of data.val, by a hash of the file
    names, while the search sees the first; or data.test."""

    def reference_row(self, rows: Sequence[str]) -> str:
        """The name of the reference."""
        return self.reference if self.reference is not None else rows[0]


def check_search(
    search: Search | None, rows: Sequence[str], seeds: Sequence[int], included: bool, document: Document
) -> None:
    """Raises InputError, with its line, for what can be seen without the configuration."""
    if search is None:
        return

    def where(*loc: str) -> str:
        return document.where(("search", *loc))

    if included:
        raise InputError(
            f"{where()}: a sweep that searches can't include others, or be included; use a file of its own"
        )
    for key in search.parameters:
        check_key(key, where("parameters", key))
        if key not in keys() and key.rpartition(".")[2] == key:
            raise InputError(f"{where('parameters', key)}: {key} is a section; name a key in it")
    if search.reference is not None and search.reference not in rows:
        raise InputError(
            f'{where("reference")}: unknown row "{search.reference}"; {suggestion(search.reference, rows)}'
        )
    if len(set(search.winner_seeds)) != len(search.winner_seeds):
        raise InputError(f"{where('winner_seeds')}: winner_seeds is {short(search.winner_seeds)}; list each seed once")
    if seeds[0] in search.winner_seeds:
        raise InputError(
            f"{where('winner_seeds')}: the samples are trained with seed {seeds[0]}, the first of seeds, so the winner "
            "was chosen by it; list other seeds"
        )


def laid(config: TrainingConfig, values: Mapping[str, Any], origin: str) -> TrainingConfig:
    """``config`` with ``values`` by dotted key. Raises InputError, with the ``origin``, for what can't be."""
    tree: dict[str, Any] = config.model_dump()
    for key, value in values.items():
        *above, last = key.split(".")
        branch = tree
        for name in above:
            branch = branch[name]
        branch[last] = value
    found = checked(TrainingConfig, tree, lambda loc, text="": origin)
    return found.model_copy(update={"plugins": config.plugins})


def check_domains(search: Search, config: TrainingConfig) -> None:
    """Raises InputError where a value of the space, or a combination, can't be trained, or changes nothing."""
    middle = {key: domain.middle for key, domain in search.parameters.items()}
    origins = {key: f"search.parameters, {key}" for key in search.parameters}
    for key, domain in search.parameters.items():
        found = [deciding(laid(config, {**middle, key: value}, origins[key])) for value in domain.ends]
        if len(found) > 1 and all(one == found[0] for one in found):
            raise InputError(f"{origins[key]}: this key doesn't change what is trained; leave it out of the search")
    for values in _combinations(search.parameters, middle):
        laid(config, values, f"search.parameters can give {_shown(values)}")


def _combinations(parameters: Mapping[str, Domain], middle: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Of the values that have a probability; what is continuous stays in its middle, whose ends have none."""
    discrete = [key for key, domain in parameters.items() if domain.discrete]
    for combination in itertools.islice(itertools.product(*(parameters[key].ends for key in discrete)), _MOST_CORNERS):
        yield {**middle, **dict(zip(discrete, combination, strict=True))}


def sample_name(search: Search, values: Mapping[str, Any]) -> str:
    """A row's name from its values, such as ``predicted_weight=0.73, topk=9``."""
    return ", ".join(f"{key}={text}" for key, text in shown_values(search, values).items())


def shown_values(search: Search, values: Mapping[str, Any]) -> dict[str, str]:
    """Values as columns: under the last part of each key where that is enough."""
    lasts = [key.rpartition(".")[2] for key in search.parameters]
    names = {key: last if lasts.count(last) == 1 else key for key, last in zip(search.parameters, lasts, strict=True)}
    return {names[key]: _plain(value) for key, value in values.items()}


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_plain(value)}" for key, value in values.items())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
