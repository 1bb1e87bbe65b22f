"""The samples of a search, kept with its sweep, so that the same command goes on where it was.

    STORAGE/sweeps/KEY/search.json   {"searches": {SEARCH: {"sources": …, "samples": [{"number", "values", "identity"}],
                                                            "winner": {"number", "samples"} or null}}}

SEARCH is a hash of what is searched and how; another space begins another search. A sample's state and figures are its
training's, in the ledger. One that the scheduler stopped has a mark there, ``"stopped"``: its training is pending, for
it can be continued by whoever asks for it, but for the search it is over.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from orchestrator.identity import digest, flattened, sources_digest
from orchestrator.ledger import Ledger
from orchestrator.search_spec import Search

_NOT_THE_SEARCH = {"samples", "winner_seeds"}


@dataclass(frozen=True)
class Sample:
    """One configuration that was tried."""

    number: int
    """From 0, in the order in which they were drawn."""
    values: dict[str, Any]
    """By configuration key."""
    identity: str
    """Of its training."""


@dataclass(frozen=True)
class Samples:
    """What is known of one search."""

    samples: tuple[Sample, ...] = ()
    winner: int | None = None
    """Number of the best one, once as many as ``chosen_of`` were tried."""
    chosen_of: int = 0
    sources: str | None = None
    """Digest of the code that trained them; None before the first."""

    @property
    def other_code(self) -> bool:
        """Whether the code that decides the weights has changed since."""
        return self.sources is not None and self.sources != sources_digest()


def search_key(search: Search, recipe: dict[str, Any], holdout: str) -> str:
    """What names a search: its space and rule, the ``recipe`` (identity.deciding) that it varies, and its data."""
    said = search.model_dump(mode="json", exclude=_NOT_THE_SEARCH)
    kept = {key: value for key, value in flattened(recipe).items() if key not in search.parameters}
    return digest({"search": said, "recipe": kept, "holdout": holdout})[:16]


def read_samples(ledger: Ledger, sweep: str, search: str) -> Samples:
    """Those of a search, in their order; none where none are known."""
    entry = _searches(ledger.place.read(_document(sweep))).get(search)
    if entry is None:
        return Samples()
    winner = entry.get("winner") or {}
    return Samples(
        samples=tuple(Sample(one["number"], one["values"], one["identity"]) for one in entry["samples"]),
        winner=winner.get("number"),
        chosen_of=winner.get("samples", 0),
        sources=entry.get("sources"),
    )


def add_sample(ledger: Ledger, sweep: str, search: str, values: dict[str, Any], identity: str, number: int) -> Sample:
    """Writes down a new sample before it is trained, as the ``number`` that comes next.

    May be repeated: where a bucket did as it was asked and its answer was lost, the sample is there already.
    """

    def change(entry: dict[str, Any]) -> None:
        if len(entry["samples"]) == number:
            entry["samples"].append({"number": number, "values": values, "identity": identity, "time": time.time()})
            entry["winner"] = None

    _change(ledger, sweep, search, change)
    return Sample(number, values, identity)


def choose_winner(ledger: Ledger, sweep: str, search: str, number: int) -> None:
    """Writes down which sample won among those that are known."""

    def change(entry: dict[str, Any]) -> None:
        entry["winner"] = {"number": number, "samples": len(entry["samples"]), "time": time.time()}

    _change(ledger, sweep, search, change)


def forget(ledger: Ledger, sweep: str, search: str) -> None:
    """Begins the search anew; the former samples stay in the document under another name."""

    def apply(found: Any | None) -> dict[str, Any] | None:
        known = _searches(found)
        if search not in known:
            return None
        former = known.pop(search)
        return {"searches": known | {f"{search}-until-{time.strftime('%Y%m%dT%H%M%S')}": former}}

    ledger.update(_document(sweep), apply)


def accept_code(ledger: Ledger, sweep: str, search: str) -> None:
    """The samples count as those of the present code from now on."""
    _change(ledger, sweep, search, lambda entry: entry.update(sources=sources_digest()))


def mark_stopped(ledger: Ledger, identity: str, *, sweep: str, by: str, step: int, metric: str, value: float) -> None:
    """Asks a training to save a checkpoint and end, and says why: it was stopped, which is no failure."""
    stopped = {"by": by, "step": step, "sweep": sweep, "metric": metric, "value": value, "time": time.time()}
    ledger.stop(identity, stopped=stopped)


def _change(ledger: Ledger, sweep: str, search: str, change: Any) -> None:
    def apply(found: Any | None) -> dict[str, Any]:
        known = _searches(found)
        entry = known.setdefault(search, {"sources": sources_digest(), "samples": [], "winner": None})
        change(entry)
        return {"searches": known}

    ledger.update(_document(sweep), apply)


def _searches(found: Any | None) -> dict[str, Any]:
    searches = found.get("searches") if isinstance(found, dict) else None
    return searches if isinstance(searches, dict) else {}


def _document(sweep: str) -> str:
    return f"sweeps/{sweep}/search.json"
