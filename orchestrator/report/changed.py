"""Images on which two compared rows differ most: how they are chosen, and how they are drawn."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from detector.errors import InputError
from orchestrator.comparison import apart, data_of
from orchestrator.plan import Plan, PlannedRow
from orchestrator.report.evidence import Evidence
from orchestrator.results import Results

if TYPE_CHECKING:
    from detector.error_kinds import ErrorKinds

A_PAIR = 4
"""Most images of a pair: as many where the first row is better as where the second is."""
IN_ALL = 48
"""Most images of a report."""
SIDE = 360
"""Longer side of an image in pixels."""
MOST_BYTES = 24_000
QUALITIES = (72, 55, 40, 25)
BOXES = 80
"""Most boxes that are drawn of one kind."""


@dataclass(frozen=True)
class Change:
    """One image of one pair."""

    image_id: int
    difference: float
    """Errors of the first row less those of the second on it, mean over the seeds that both have."""
    seed: int
    """Whose boxes are drawn: the one with the largest difference in that direction."""


def most_changed(pairs: Sequence[tuple[int, ErrorKinds, ErrorKinds]], count: int) -> list[Change]:
    """At most ``count`` images on which the two rows' errors differ most, half of them for each row.

    ``pairs``: seed, the first row's evaluation and the second's, of the same images. An error is a box that wasn't
    found or a detection that found none (``ErrorKinds.errors_by_image``). The largest difference first; of equals the
    lowest image id.
    """
    if not pairs:
        return []
    ids = pairs[0][1].image_ids
    each = np.stack([first.errors_by_image() - second.errors_by_image() for _, first, second in pairs])  # (S, I)
    mean = each.mean(0)
    better_first = [place for place in np.argsort(mean, kind="stable").tolist() if mean[place] < 0]
    better_second = [place for place in np.argsort(-mean, kind="stable").tolist() if mean[place] > 0]
    half = (count + 1) // 2
    ahead = better_first[: max(half, count - len(better_second))]
    behind = better_second[: max(count - half, count - len(better_first))]
    chosen = sorted([*ahead, *behind], key=lambda place: (-abs(mean[place]), place))[:count]
    return [
        Change(int(ids[place]), float(mean[place]), pairs[int(np.argmax(each[:, place] * np.sign(mean[place])))][0])
        for place in chosen
    ]


def sections(plan: Plan, ledger: Results, evidence: Evidence) -> list[str]:
    """For each pair its images, as HTML; nothing where no pair can be examined."""
    pairs = [pair for pair in plan.compare if set(pair) <= set(plan.row_names)]
    a_pair = min(A_PAIR, IN_ALL // max(1, len(pairs)))
    parts: list[str] = []
    for number, pair in enumerate(pairs):
        if number >= IN_ALL:
            parts.append(f"<p>Images are shown for the first {IN_ALL} of {len(pairs)} pairs.</p>")
            break
        parts += _pair(plan, ledger, evidence, pair, max(1, a_pair), number)
    return parts


def _pair(plan: Plan, ledger: Results, evidence: Evidence, pair: tuple[str, str], count: int, number: int) -> list[str]:
    title = f"<h3>{escape(pair[0])} and {escape(pair[1])}</h3>"
    rows = {(row.row, row.seed): row for row in plan.rows if row.row in pair}
    first_of = {name: next(row for (of, _), row in rows.items() if of == name) for name in pair}
    if data_of(first_of[pair[0]]) != data_of(first_of[pair[1]]):
        return [title, f"<p>Not compared: {escape(apart(first_of, pair))}.</p>"]
    digests = {row.val.digest for row in rows.values() if row.val}
    shared: list[tuple[int, ErrorKinds, ErrorKinds]] = []
    why = ""
    for seed in dict.fromkeys(seed for _, seed in rows):
        first, second = (evidence.of(rows[name, seed]) if (name, seed) in rows else None for name in pair)
        if first is None or second is None:
            continue
        why = next((answer for answer in (first, second) if isinstance(answer, str)), why)
        if not isinstance(first, str) and not isinstance(second, str):
            shared.append((seed, first, second))
    if not shared:
        return [title, f"<p>No images: {escape(why)}.</p>"] if why else []
    split = ledger.split(digests.pop())
    if isinstance(split, str):
        return [title, f"<p>No images: {escape(split)}.</p>"]
    changes = most_changed(shared, count)
    if not changes:
        return [title, "<p>Both rows make equally many errors on every image.</p>"]
    by_seed = {seed: (first, second) for seed, first, second in shared}
    names = dict(_categories(rows.values()))
    places = {int(identity): place for place, identity in enumerate(split.image_ids.tolist())}
    cards = []
    for index, change in enumerate(changes):
        try:
            pixels = split.image(places[change.image_id])
        except (InputError, KeyError) as error:
            cards.append(f"<p>Image {change.image_id} can't be shown: {escape(str(error))}</p>")
            continue
        file_name = split.file_names[places[change.image_id]]
        cards.append(
            _card(pair, change, by_seed[change.seed], pixels, file_name, names, f"i{number}-{index}", len(shared))
        )
    return [title, f'<div class="changes">{"".join(cards)}</div>']


def _categories(rows: Any) -> tuple[tuple[int, str], ...]:
    return next((row.val.categories for row in rows if isinstance(row, PlannedRow) and row.val), ())


def thumbnail(pixels: np.ndarray) -> bytes:
    """A JPEG of (H, W, 3) uint8 pixels, at most ``SIDE`` on its longer side and, if at all possible, ``MOST_BYTES``."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    content = b""
    for quality in QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        content = file.getvalue()
        if len(content) <= MOST_BYTES:
            break
    return content


def _card(
    pair: tuple[str, str],
    change: Change,
    both: tuple[ErrorKinds, ErrorKinds],
    pixels: np.ndarray,
    file_name: str,
    names: dict[int, str],
    identity: str,
    seeds: int,
) -> str:
    height, width = pixels.shape[:2]
    data = base64.b64encode(thumbnail(pixels)).decode()
    symbol = (
        f'<svg class="hidden" aria-hidden="true"><symbol id="{identity}" viewBox="0 0 {width} {height}">'
        f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{data}"/></symbol></svg>'
    )
    panels = "".join(
        _panel(name, side, change, found, names, identity, (width, height))
        for name, side, found in zip(pair, ("first", "second"), both, strict=True)
    )
    better = pair[0] if change.difference < 0 else pair[1]
    over = f", mean of {seeds} seeds; boxes of seed {change.seed}" if seeds > 1 else f"; seed {change.seed}"
    said = f"{abs(change.difference):.3g} errors fewer with {better}{over}"
    return (
        f'<div class="change">{symbol}<div class="both">{panels}</div>'
        f'<p class="caption"><b>{escape(file_name)}</b>: {escape(said)}.</p></div>'
    )


def _panel(
    name: str,
    side: str,
    change: Change,
    found: ErrorKinds,
    names: dict[int, str],
    identity: str,
    size: tuple[int, int],
) -> str:
    from detector.error_kinds import CROWD, FOUND, IN_CROWD, KINDS, SEEN, STATES

    place = int(np.searchsorted(found.image_ids, change.image_id))
    ids = found.category_ids.tolist()
    shapes, wrong = [], []
    truths = np.flatnonzero(found.truth_image == place)[:BOXES].tolist()
    for truth in truths:
        state = int(found.truth_state[truth])
        if state == CROWD:
            continue
        label = names.get(ids[found.truth_category[truth]], "?")
        lost = state != SEEN
        said = "found" if not lost else "nearly found" if STATES[state] == "nearly" else "missed"
        shapes.append(_box(found.truth_box[truth], "lost" if lost else "truth", f"{label}: {said}"))
        wrong += [f"{label} {said}"] if lost else []
    told = np.flatnonzero((found.image == place) & (found.kind != IN_CROWD))[:BOXES].tolist()
    for one in told:
        label, kind = names.get(ids[found.category[one]], "?"), int(found.kind[one])
        title = f"{label} {float(found.score[one]):.2f}: {KINDS[kind]}"
        shapes.append(_box(found.box[one], side if kind == FOUND else "wrong", title))
        wrong += [f"{label}, {KINDS[kind]}"] if kind != FOUND else []
    width, height = size
    summary = "; ".join(wrong[:6]) + (f"; and {len(wrong) - 6} more" if len(wrong) > 6 else "")
    return (
        f'<div><svg class="picture" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)}">'
        f'<use href="#{identity}" width="{width}" height="{height}"/>{"".join(shapes)}</svg>'
        f"<p><b>{escape(name)}</b> {len(wrong)} error{'' if len(wrong) == 1 else 's'}"
        f"{': ' + escape(summary) if wrong else ''}</p></div>"
    )


def _box(box: np.ndarray, kind: str, title: str) -> str:
    x, y, width, height = (round(float(value), 1) for value in box)
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    # A dark line below each, so that it is seen on any ground.
    return f'<g class="{kind}"><title>{escape(title)}</title>{shape} class="under"/>{shape}/></g>'
