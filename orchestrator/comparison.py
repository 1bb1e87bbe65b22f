"""What a sweep's results say of the pairs that its file names in ``compare``, and of the order of its rows.

A verdict is given of a table that is complete: every selected row has finished all planned seeds. Until then there are
differences and intervals. Rows are judged together where they were trained and evaluated on the same data, and never
against rows of other data.

All figures are AP in percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.departures import data_name, model_name, other_than_paper
from orchestrator.looks import Look, Looks, before, both, seeds_of, shared
from orchestrator.plan import Plan, PlannedRow
from orchestrator.resampling import Resampled
from orchestrator.results import Results, result_rows
from orchestrator.statistics.images import ImageIntervals, image_intervals
from orchestrator.statistics.ordering import Agreement, ordering
from orchestrator.statistics.pairs import CANT_TELL, ELSEWHERE, REPRODUCTION, Judgement, judge, sentence
from orchestrator.statistics.power import ASSUMED_DEVIATION

Cells = dict[str, dict[int, float]]
"""AP by row and seed, of what is finished and defined."""


@dataclass(frozen=True)
class Pair:
    """One pair of rows."""

    first: str
    second: str
    judgement: Judgement | None
    """None where the two can't be compared at all."""
    refused: str
    """Why they can't; empty if they can."""
    verdict: str
    """In words; what it is said of, if that isn't the paper's own recipe."""
    where: str
    """Data and model, if they or anything else isn't the paper's; else empty."""
    other: tuple[str, ...]
    """Keys in which either row isn't what the paper did."""
    images: ImageIntervals | None
    """Intervals from resampled validation images."""
    images_missing: str
    """Why there are none; empty if there are."""

    @property
    def name(self) -> str:
        """``FIRST − SECOND``."""
        return f"{self.first} \N{MINUS SIGN} {self.second}"


@dataclass(frozen=True)
class Comparison:
    """All of a table."""

    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    """Planned a row."""
    looks: Looks
    """Looks at verdicts that were taken, with the present one, if it is one."""
    present: Look
    """What the present one looks at."""
    withheld: str
    """Why no verdict is given; empty if verdicts are given."""
    look: bool
    """Whether this is a look: verdicts are given, and a pair has the seeds for one."""
    agreement: Agreement | None
    """Of the order of the rows with the paper's; None where there is nothing to compare."""
    where: str
    """What ``agreement`` is of, if not of the paper's own recipe."""
    without_boxes: tuple[str, ...]
    """Classes of the validation split that have no box there: undefined, and in no AP."""


def planned_cells(plan: Plan, ledger: Results) -> tuple[Cells, int, dict[str, list[int]]]:
    """What there is, with an entry for every row; how many planned trainings aren't finished; and the seeds of those
    that are and have no AP, by row.
    """
    entries = result_rows(plan, ledger)
    undefined: dict[str, list[int]] = {}
    cells: Cells = {name: {} for name in plan.row_names}
    for entry in entries:
        value = entry["metrics"].get("AP") if entry["state"] == "finished" else None
        if value is not None:
            cells[entry["row"]][entry["seed"]] = value
        elif entry["state"] == "finished":
            undefined.setdefault(entry["row"], []).append(entry["seed"])
    return cells, sum(entry["state"] != "finished" for entry in entries), undefined


def compare(plan: Plan, ledger: Results) -> Comparison:
    """The comparison as the ledger stands now."""
    cells, unfinished, undefined = planned_cells(plan, ledger)
    first = {row.row: row for row in reversed(plan.rows)}
    seeds = tuple(dict.fromkeys(row.seed for row in plan.rows))
    pairs = [pair for pair in plan.compare if set(pair) <= first.keys()]
    present = seeds_by_row(plan)
    looks = ledger.looks(plan.key) if pairs else []
    earlier = before(looks, present)
    withheld = _withheld(unfinished, len(plan.rows), present, earlier)
    resampled = _Resampling(plan, ledger)
    found: dict[tuple[str, str], Pair] = {}
    for data in dict.fromkeys(map(data_of, first.values())):
        rows = {name for name, row in first.items() if data_of(row) == data}
        group = [pair for pair in pairs if set(pair) <= rows]
        if not group:
            continue
        judgements = judge(
            {name: cells[name] for name in cells if name in rows},
            group,
            paper_of(first[name] for name in rows),
            looks={pair: [shared(look, pair) for look in earlier] for pair in group},
            seeds={pair: shared(present, pair) for pair in group},
            seen=_seen(plan, ledger, rows, group, present, looks),
            labels={pair: ELSEWHERE if _other(first, pair) else REPRODUCTION for pair in group},
            others=max(plan.pairs, len(plan.compare)) - len(group),
            same_training=same_training(plan, rows),
        )
        for pair, judgement in zip(group, judgements, strict=True):
            lacking = [f"{name} (seed {', '.join(map(str, undefined[name]))})" for name in pair if name in undefined]
            if judgement.difference is None and lacking:
                judgement = replace(judgement, reason=f"finished without a defined AP: {' and '.join(lacking)}")
            found[pair] = _pair(first, pair, judgement, withheld, resampled)
    for pair in pairs:
        if pair not in found:
            found[pair] = _refused(first, pair)
    look = not withheld and any(shared(present, pair) > 1 for pair in pairs)
    taken = looks if not look or len(earlier) < len(looks) else [*looks, present]
    agreement, where = _agreement(plan, cells, first)
    return Comparison(
        pairs=tuple(found[pair] for pair in pairs),
        seeds=seeds,
        looks=taken,
        present=present,
        withheld=withheld,
        look=look,
        agreement=agreement,
        where=where,
        without_boxes=resampled.without_boxes,
    )


def seeds_by_row(plan: Plan) -> Look:
    """The planned seeds of each row."""
    return {name: tuple(sorted(row.seed for row in plan.rows if row.row == name)) for name in plan.row_names}


def data_of(row: PlannedRow) -> tuple[str | None, str | None]:
    """What ``row`` is trained and evaluated on, by digest."""
    return row.train.digest if row.train else None, row.val.digest if row.val else None


def paper_of(rows: Iterable[PlannedRow]) -> dict[str, float]:
    """The paper's AP by row, as far as it has any."""
    return {row.row: row.paper["AP"] for row in rows if "AP" in row.paper}


def same_training(plan: Plan, rows: set[str]) -> dict[str, str]:
    """Rows of ``rows`` that are an earlier row's trainings and evaluations under a second name, with that row."""
    owners: dict[tuple[tuple[str, str], ...], str] = {}
    found = {}
    for name in (name for name in plan.row_names if name in rows):
        trainings = tuple((row.identity, row.evaluation) for row in plan.rows if row.row == name)
        owner = owners.setdefault(trainings, name)
        if owner != name:
            found[name] = owner
    return found


def _withheld(unfinished: int, planned: int, present: Look, earlier: Looks) -> str:
    if unfinished:
        return (
            f"{unfinished} of {planned} planned trainings {'is' if unfinished == 1 else 'are'} not finished; verdicts "
            "are given when all are, or of the rows and seeds that --only and --seeds select"
        )
    for row, seeds in present.items():
        seen = sorted({seed for look in earlier for seed in seeds_of(look, row)} - set(seeds))
        if seen:
            return (
                f"an earlier look had the seeds {', '.join(map(str, seen))} of {row}, too; a verdict without them "
                "would be a choice among results"
            )
    return ""


def _seen(
    plan: Plan,
    ledger: Results,
    rows: set[str],
    pairs: Iterable[tuple[str, str]],
    present: Look,
    looks: Looks,
) -> dict[tuple[str, str], Cells]:
    """What the first look at each pair with its present seeds saw of rows of the same data; no entry where it wasn't.

    Selected or not: by its level that look is spent, and what other rows have come to since is not in it.
    """
    first = {pair: next((look for look in looks if both(look, pair) == both(present, pair)), None) for pair in pairs}
    if not any(first.values()):
        return {}
    data = next(data_of(row) for row in plan.rows if row.row in rows)
    # Of two names of one training a selected one is kept, which ``same_training`` of the selection knows.
    known = sorted([*plan.reported.rows, *plan.beside], key=lambda row: row.row not in rows)
    everything = replace(plan.reported, rows=tuple(known))
    alike = {row.row for row in known if data_of(row) == data}
    again = same_training(everything, alike)
    cells, _, _ = planned_cells(everything, ledger)
    return {
        pair: {
            name: {seed: value for seed, value in cells[name].items() if seed in seeds_of(look, name)}
            for name in cells
            if name in rows or (name in alike and name not in again)
        }
        for pair, look in first.items()
        if look is not None
    }


def _other(first: Mapping[str, PlannedRow], pair: tuple[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for name in pair for key in other_than_paper(first[name])))


def _where(rows: Sequence[PlannedRow]) -> str:
    data = " and ".join(dict.fromkeys(map(data_name, rows)))
    models = list(dict.fromkeys(map(model_name, rows)))
    return f"{data} with {' and '.join(models) if len(models) < 3 else f'{len(models)} models'}"


def _pair(
    first: Mapping[str, PlannedRow],
    pair: tuple[str, str],
    judgement: Judgement,
    withheld: str,
    resampled: _Resampling,
) -> Pair:
    other = _other(first, pair)
    where = _where([first[name] for name in pair]) if other else ""
    if withheld:
        judgement = replace(judgement, verdict=CANT_TELL, p_adjusted=1.0, more_seeds=None)
    images, missing = resampled.intervals(judgement)
    return Pair(*pair, judgement, "", sentence(judgement, where), where, other, images, missing)


def apart(first: Mapping[str, PlannedRow], pair: tuple[str, str]) -> str:
    """In which data the two rows differ, by the first planned training of each."""
    one, two = (first[name] for name in pair)
    trained = data_of(one)[0] != data_of(two)[0]
    splits = [row.train if trained else row.val for row in (one, two)]
    said = [
        f"{name} on {split.split} of {split.root.rstrip('/').rpartition('/')[2]} ({split.images:,} images)"
        if split
        else name
        for name, split in zip(pair, splits, strict=True)
    ]
    return f"{'trained' if trained else 'evaluated'} on different data: {', '.join(said)}"


def _refused(first: Mapping[str, PlannedRow], pair: tuple[str, str]) -> Pair:
    why = apart(first, pair)
    return Pair(*pair, None, why, f"not compared: {why}", "", _other(first, pair), None, why)


def _agreement(plan: Plan, cells: Cells, first: Mapping[str, PlannedRow]) -> tuple[Agreement | None, str]:
    paper = paper_of(first.values())
    again = same_training(plan, set(first))
    rows = [name for name in cells if cells[name] and name in paper and name not in again]
    if len(rows) < 2 or len({data_of(first[name]) for name in rows}) > 1:
        return None, ""
    data = data_of(first[rows[0]])
    known = {name: cells[name] for name in cells if data_of(first[name]) == data and name not in again}
    other = any(other_than_paper(first[name]) for name in rows)
    where = _where([first[name] for name in rows]) if other else ""
    return ordering(known, paper, papers_deviation=ASSUMED_DEVIATION[1] if other else None), where


class _Resampling:
    """Resampled evaluations, each read once."""

    def __init__(self, plan: Plan, ledger: Results) -> None:
        self._ledger = ledger
        self._rows = {(row.row, row.seed): row for row in plan.rows}
        self._read: dict[tuple[str, str], Resampled | str] = {}
        self._without: dict[str, None] = {}

    @property
    def without_boxes(self) -> tuple[str, ...]:
        """Names of the classes without a box, as far as evaluations were read."""
        return tuple(self._without)

    def intervals(self, judgement: Judgement) -> tuple[ImageIntervals | None, str]:
        """Intervals of the difference from the images, or why there are none."""
        if judgement.difference is None:
            return None, judgement.reason
        differences: list[np.ndarray] = []
        images = 0
        for seed in sorted({seed for _, seed in self._rows}):
            one, two = self._of(judgement.first, seed), self._of(judgement.second, seed)
            if one is None or two is None:
                continue
            for name, found in ((judgement.first, one), (judgement.second, two)):
                if isinstance(found, str):
                    return None, f"{name}, seed {seed}: {found}"
            assert isinstance(one, Resampled)
            assert isinstance(two, Resampled)
            if (one.pairing, one.ap.shape) != (two.pairing, two.ap.shape):
                return None, "the two were resampled differently"
            differences.append(one.ap - two.ap)
            images = one.images
        if not differences:
            return None, "the two rows share no seed"
        found_intervals = image_intervals(
            judgement.difference,
            np.mean(differences, axis=0),
            images=images,
            error=judgement.error,
            df=judgement.df,
        )
        if found_intervals.images is None:
            return None, "AP is undefined on most resamples of the images"
        return found_intervals, ""

    def _of(self, name: str, seed: int) -> Resampled | str | None:
        """None where there is no figure of that row and seed."""
        row = self._rows.get((name, seed))
        if row is None or row.val is None:
            return None
        record = self._ledger.record(row.identity, row.evaluations)
        value = record.metrics.get("AP")
        if record.state != "finished" or value is None or not math.isfinite(value):
            return None
        key = row.identity, row.evaluation
        if key not in self._read:
            found = self._ledger.resampled(*key, row.val.digest)
            self._read[key] = found
            if isinstance(found, Resampled):
                names = dict(row.val.categories)
                self._without |= {names.get(number, str(number)): None for number in found.without_boxes}
        return self._read[key]
