"""What trainings were made of: kept with each, so that what an edit has changed can be named before anything is reused.

    STORAGE/trainings/IDENTITY/basis.json   what the identity is a hash of, and the digest of each source file
    STORAGE/sweeps/KEY/rows.json            {"ROW": {"SEED": identity}}, as the sweep was last run
    STORAGE/accepted/IDENTITY.json          the training by other code that stands for this identity, and since when

Two trainings of one *recipe* differ at most in the code that computed them.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from detector.document import listed
from orchestrator.ledger import Ledger

MOST = 6
"""Differences that are named; the rest is counted."""


@dataclass(frozen=True)
class OtherCode:
    """A training of the same recipe that was begun with other code than the present."""

    identity: str
    files: tuple[str, ...]
    """Sources that differ, below the package ``detector``, or plug-ins."""
    done: bool
    """Whether it is finished; else a part of it is there."""
    accepted: bool = False
    """Whether ``--accept-code-change`` said that it may stand for the present code's."""

    def __str__(self) -> str:
        return listed(self.files, MOST)


class History:
    """Earlier trainings in ``ledger``'s storage, as the sweep ``key`` sees them. Reads what it needs once."""

    def __init__(self, ledger: Ledger, key: str) -> None:
        self._ledger, self._key = ledger, key
        self._known: dict[str, dict[str, Any]] | None = None
        self._rows = _read(ledger, f"sweeps/{key}/rows.json")

    def other_code(self, identity: str, basis: Mapping[str, Any]) -> OtherCode | None:
        """The training by other code that stands, or could stand, for ``identity``; None where it has its own."""
        if self._ledger.exists(identity):
            return None
        accepted = _read(self._ledger, _accepted(identity)).get("training")
        if accepted and self._ledger.exists(accepted):
            return self._other(accepted, basis, accepted=True)
        found = [
            self._other(known, basis)
            for known, other in self._bases().items()
            if other.get("recipe") == basis["recipe"] and self._begun(known)
        ]
        # A finished one before one that is half done, and then the newest.
        return max(found, key=lambda one: (one.done, self._ledger.record(one.identity).started or 0.0), default=None)

    def changed(self, row: str, seed: int, identity: str, basis: Mapping[str, Any]) -> tuple[str, ...]:
        """What is different from the training that this row had when the sweep was last run: keys, data, sources."""
        last = self._rows.get(row, {}).get(str(seed))
        if last is None or last == identity:
            return ()
        before = _read(self._ledger, _basis(last))
        return differences(before, basis) if before else ()

    def seeds(self, row: str) -> tuple[int, ...]:
        """Seeds with which the sweep was run for ``row``, in ascending order."""
        return tuple(sorted(int(seed) for seed in self._rows.get(row, {})))

    def dropped(self, rows: Iterable[str]) -> tuple[str, ...]:
        """Rows that the sweep had when it was last run and that aren't among ``rows``."""
        present = set(rows)
        return tuple(row for row in self._rows if row not in present)

    def _other(self, identity: str, basis: Mapping[str, Any], *, accepted: bool = False) -> OtherCode:
        before = _read(self._ledger, _basis(identity))
        done = self._ledger.record(identity).trained
        return OtherCode(identity, files_changed(before, basis), done, accepted)

    def _begun(self, identity: str) -> bool:
        record = self._ledger.record(identity)
        return record.trained or record.step > 0

    def _bases(self) -> dict[str, dict[str, Any]]:
        if self._known is None:
            names = self._ledger.place.names("trainings")
            self._known = {name: _read(self._ledger, _basis(name)) for name in names}
        return self._known


def accept(ledger: Ledger, identity: str, other: OtherCode, *, sweep: str, row: str) -> None:
    """Writes down that the training ``other`` stands for ``identity``, which it was not made by."""
    step = ledger.record(other.identity).step
    entry = {"training": other.identity, "sweep": sweep, "row": row, "step": step, "files": list(other.files)}
    ledger.update(
        _accepted(identity),
        lambda found: None if found and found.get("training") == other.identity else {**entry, "accepted": time.time()},
    )


def forget_accepted(ledger: Ledger, identity: str) -> None:
    """The present code's own training stands for ``identity`` from now on."""
    ledger.update(_accepted(identity), lambda found: {} if found else None)


def remember_rows(ledger: Ledger, key: str, rows: Iterable[tuple[str, int, str]]) -> None:
    """Keeps which training (row, seed, identity) each row has now."""

    def change(found: Any | None) -> dict[str, Any]:
        known: dict[str, Any] = found if isinstance(found, dict) else {}
        for row, seed, identity in rows:
            known.setdefault(row, {})[str(seed)] = identity
        return known

    ledger.update(f"sweeps/{key}/rows.json", change)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """``KEY old → new`` for each key that decides the weights, then the data and the source files that differ."""
    old, new = before["deciding"], after["deciding"]
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    found = [f"{key} {_short(old.get(key))} → {_short(new.get(key))}" for key in keys]
    if before["train_digest"] != after["train_digest"]:
        found.append("the training images or their annotations")
    return (*found, *files_changed(before, after))


def files_changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Sources of which ``before`` and ``after`` have different ones."""
    old, new = before.get("sources", {}), after.get("sources", {})
    return tuple(sorted(name for name in {**old, **new} if old.get(name) != new.get(name)))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _basis(identity: str) -> str:
    return f"trainings/{identity}/basis.json"


def _accepted(identity: str) -> str:
    return f"accepted/{identity}.json"


def _read(ledger: Ledger, key: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError, OSError):
        found = ledger.place.read(key)
        if isinstance(found, dict):
            return found
    return {}
