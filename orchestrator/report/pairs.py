"""The pairs that a sweep compares, in words and in figures: for the page, for Markdown, a terminal, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from typing import Any

from detector.document import listed
from orchestrator.comparison import Comparison, Pair
from orchestrator.looks import Look, Looks, before, shared
from orchestrator.report.table import UNDEFINED
from orchestrator.statistics.looks import look_level
from orchestrator.statistics.pairs import Judgement

HEAD = (
    *("pair", "seeds", "difference", "95 % interval over seeds", "verdict", "paper's difference", "size"),
    *("from these images only", "images and seeds"),
)
TEXT = frozenset({"pair", "verdict", "size"})
"""Columns of words; the others are figures."""
CLASSES_NAMED = 10
"""More classes without boxes are only counted."""
Interval = tuple[float, float] | None


def pair_cells(pair: Pair) -> list[str]:
    """A line of the table, below ``HEAD``."""
    judgement, images = pair.judgement, pair.images
    if judgement is None:
        return [pair.name, *[UNDEFINED] * 3, pair.verdict, *[UNDEFINED] * 4]
    verdict = pair.verdict
    if judgement.interval is None and judgement.reason:
        verdict += f" ({judgement.reason})"
    return [
        pair.name,
        str(judgement.n),
        signed(judgement.difference),
        between(judgement.interval),
        verdict,
        UNDEFINED if judgement.size is None else signed(judgement.size.paper),
        size(judgement),
        between(images.images if images else None),
        between(images.both if images else None),
    ]


def size(judgement: Judgement) -> str:
    """How large the difference is beside the paper's, and whether the paper's is more than its own noise."""
    found = judgement.size
    if found is None:
        return UNDEFINED
    low, high = found.paper_range
    noise = "within the paper's own noise" if found.within_noise else "beyond the paper's own noise"
    assumed = " (assumed)" if found.assumed else ""
    said = f"a second run of the paper: {low:+.2f} to {high:+.2f}{assumed}, so {noise}"
    return f"{found.verdict}; {said}" if found.verdict else said


def signed(value: float | None) -> str:
    """``+0.12``, ``-0.12`` or a dash."""
    return UNDEFINED if value is None else f"{value:+.2f}"


def between(interval: Interval) -> str:
    """``-0.10 to +0.34`` or a dash."""
    return UNDEFINED if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}"


def pair_notes(comparison: Comparison, named: Collection[str] = ()) -> list[str]:
    """Sentences that a reader of the pairs must know; ``named``: keys that the table's notes have named already."""
    if not comparison.pairs:
        return []
    found = [
        "Differences are the first row's AP less the second's, paired by seed; intervals are of each pair by itself, "
        "with the deviation of the whole table; verdicts are adjusted for the number of pairs (Holm) and of looks."
    ]
    if comparison.withheld:
        found.append(f"No verdict is given yet: {comparison.withheld}.")
    found += [_looks(comparison)] if comparison.looks else []
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for pair in comparison.pairs:
        if pair.other:
            groups.setdefault((pair.where, pair.other), []).append(pair.name)
    for (where, other), names in groups.items():
        keys = "" if len(groups) == 1 and set(other) <= set(named) else f" ({', '.join(other)})"
        found.append(
            f"Not what the paper did{keys}, so nothing of it is reproduced or contradicted"
            + (f"; the words are about {where}" if where else "")
            + (f": {', '.join(names)}." if len(groups) > 1 or len(names) < len(comparison.pairs) else ".")
        )
    if any(pair.images for pair in comparison.pairs):
        found.append(
            "From these images only: what other validation images would change about these trainings (bootstrap, "
            "paired by image). Seeds are not in it; the interval for images and seeds has both, rather too wide."
        )
    missing: dict[str, list[str]] = {}
    for pair in comparison.pairs:
        if pair.images_missing and pair.judgement is not None and pair.judgement.difference is not None:
            missing.setdefault(pair.images_missing, []).append(pair.name)
    found += [f"No interval from the images: {', '.join(names)} ({why})." for why, names in missing.items()]
    if comparison.without_boxes:
        found.append(
            "Undefined, and in no AP, since no validation image has a box of them: "
            + listed(comparison.without_boxes, CLASSES_NAMED)
            + "."
        )
    return found


def order_note(comparison: Comparison, has_paper: bool) -> str | None:
    """The agreement of the rows' order with the paper's; None where there is no paper."""
    found = comparison.agreement
    if found is None or found.tau is None:
        return (
            "The order of the rows can't be compared with the paper's: fewer than two rows of the same data have both "
            "a result and a figure of the paper for AP, or all are equal."
            if has_paper
            else None
        )
    on = f" on {comparison.where}" if comparison.where else ""
    if len(found.rows) == 2:
        said = "the paper's" if found.tau > 0 else "not the paper's"
        return (
            f"Only two rows have both figures: their order is {said}{on}, as it would be by chance every second time."
        )
    text = (
        f"Order of the {len(found.rows)} rows that have both figures: Kendall's tau with the paper {found.tau:.2f}{on}"
    )
    if found.interval is not None:
        text += (
            f"; that of our rows' true order lies between {found.interval[0]:.2f} and {found.interval[1]:.2f} (95 %)"
        )
    if found.paper_again is not None and found.paper_again_interval is not None:
        low, high = found.paper_again_interval
        assumed = "assumed" if found.assumed else "measured"
        text += (
            f". A second run of the paper would reach {found.paper_again:.2f} ({low:.2f} to {high:.2f}) with its own "
            f"figures, by {found.deviation:.2f} AP between seeds ({assumed})"
        )
    return f"{text}."


def documents(comparison: Comparison) -> list[dict[str, Any]]:
    """One entry a pair, for JSON: unrounded, None where something is undefined."""
    return [_document(pair) for pair in comparison.pairs]


def looks_document(comparison: Comparison) -> list[dict[str, Any]]:
    """The looks that were taken, with the level that each pair could use at each."""
    return [
        {
            "rows": {row: list(seeds) for row, seeds in look.items()},
            "pairs": [
                {
                    "first": pair.first,
                    "second": pair.second,
                    "seeds": shared(look, (pair.first, pair.second)),
                    "level": _level(pair, look, comparison.looks[:number]),
                }
                for pair in comparison.pairs
            ],
        }
        for number, look in enumerate(comparison.looks)
    ]


def order_document(comparison: Comparison) -> dict[str, Any] | None:
    """Agreement of the order, for JSON."""
    found = comparison.agreement
    if found is None:
        return None
    return {
        "rows": list(found.rows),
        "tau": found.tau,
        "interval": _ends(found.interval),
        "paper_again": found.paper_again,
        "paper_again_interval": _ends(found.paper_again_interval),
        "deviation": found.deviation,
        "assumed": found.assumed,
        "where": comparison.where or None,
    }


def comma_separated_pairs(comparison: Comparison) -> str:
    """The pairs for a program; an empty field where a figure is undefined."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    lines = [_flat(document) for document in documents(comparison)]
    if lines:
        writer.writerow(lines[0])
        writer.writerows(["" if value is None else value for value in line.values()] for line in lines)
    return file.getvalue()


def _document(pair: Pair) -> dict[str, Any]:
    judged, images = pair.judgement, pair.images
    size, more = (judged.size, judged.more_seeds) if judged else (None, None)
    return {
        "first": pair.first,
        "second": pair.second,
        "n": judged.n if judged else 0,
        "difference": judged.difference if judged else None,
        "interval": _ends(judged.interval) if judged else None,
        "interval_images": _ends(images.images) if images else None,
        "interval_images_and_seeds": _ends(images.both) if images else None,
        "verdict": judged.verdict if judged else "not compared",
        "sentence": pair.verdict,
        "reason": pair.refused or (judged.reason if judged else "") or None,
        "where": pair.where or None,
        "other_than_paper": list(pair.other),
        "p": judged.p if judged else None,
        "p_adjusted": judged.p_adjusted if judged else None,
        "deviation": judged.deviation if judged else None,
        "deviation_range": _ends(judged.deviation_range) if judged else None,
        "df": judged.df if judged else 0,
        "more_seeds": more.about if more else None,
        "more_seeds_range": [more.lowest, more.highest] if more else None,
        "more_seeds_for": None if more is None else "seen" if size is None else "paper",
        "paper": size.paper if size else None,
        "paper_range": _ends(size.paper_range) if size else None,
        "within_papers_noise": size.within_noise if size else None,
        "size": size.verdict if size else None,
        "images_missing": pair.images_missing or None,
    }


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    """With two columns for the ends of each interval, and keys in one."""
    found: dict[str, Any] = {}
    for key, value in document.items():
        if key == "other_than_paper":
            found[key] = " ".join(value)
        elif key.startswith("interval") or key.endswith("_range"):
            found[f"{key}_low"], found[f"{key}_high"] = value or (None, None)
        else:
            found[key] = value
    return found


def _looks(comparison: Comparison) -> str:
    number = len(comparison.looks)
    text = f"Verdicts of this table have been looked at {'once' if number == 1 else f'{number} times'}"
    alike: dict[tuple[str, float], list[str]] = {}
    for pair in comparison.pairs:
        counts = ", ".join(str(shared(look, (pair.first, pair.second))) for look in comparison.looks)
        level = _level(pair, comparison.present, before(comparison.looks, comparison.present))
        alike.setdefault((counts, level), []).append(pair.name)
    said = []
    for (at, level), names in alike.items():
        used = f"; this look could use a level of {level:.4f} of 0.05 in all" if comparison.look else ""
        said.append(f"{text} (at {at} seeds){used}" if len(alike) == 1 else f"{', '.join(names)}: at {at} seeds{used}")
    return f"{'. '.join(said if len(alike) == 1 else [text, *said])}."


def _level(pair: Pair, look: Look, earlier: Looks) -> float:
    names = pair.first, pair.second
    return look_level(shared(look, names), [shared(one, names) for one in earlier])


def _ends(interval: Interval) -> list[float] | None:
    return None if interval is None else list(interval)
