"""What the storage has beside the states of trainings: run ids, looks, and what reports read of evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detector.errors import InputError
from orchestrator import examination, resampling, run_ids
from orchestrator import looks as looks_document
from orchestrator.looks import Look, Looks
from orchestrator.resampling import Resampled
from orchestrator.storage import Storage

if TYPE_CHECKING:
    from detector.data.store import Store
    from detector.error_kinds import ErrorKinds


class BesideTrainings:
    """The part of the ledger that isn't about the state of a training."""

    place: Storage

    @property
    def address(self) -> str:
        """What names the storage on every node."""
        return self.place.address

    # MLflow's run ids, so that a row's run is found again

    def runs(self, key: str) -> dict[str, Any]:
        """``{"parent": run id, "rows": {"ROW": {"SEED": run id}}}`` of a sweep, as far as known."""
        return run_ids.read(self.place, key)

    def run_id(self, sweep_key: str, row: str, seed: int) -> str | None:
        """MLflow run of a row and seed."""
        return self.runs(sweep_key)["rows"].get(row, {}).get(str(seed))

    def parent_run_id(self, sweep_key: str) -> str | None:
        """MLflow run of the sweep."""
        return self.runs(sweep_key)["parent"]

    def remember_run(self, sweep_key: str, run_id: str, row: str | None = None, seed: int | None = None) -> None:
        """Stores the parent's run id, or that of a row and seed."""
        run_ids.remember(self.place, sweep_key, run_id, row, seed)

    # What the report's verdicts stand on, beside the results

    def looks(self, sweep_key: str) -> Looks:
        """The looks at the sweep's verdicts."""
        try:
            return looks_document.read(self.place, sweep_key)
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{self.address}/sweeps/{sweep_key}/looks.json is not what was written there; without it nobody knows "
                "how often the verdicts were looked at: restore it, or move it away to begin anew"
            ) from None

    def remember_look(self, sweep_key: str, look: Look) -> None:
        """Stores a look, if it is new."""
        looks_document.remember(self.place, sweep_key, look)

    def resampled(self, identity: str, key: str, split_digest: str) -> Resampled | str:
        """AP of an evaluation over resamples of its images, or a sentence that says what is missing."""
        return resampling.resampled(self.place, identity, key, split_digest)

    def examined(self, identity: str, key: str, split_digest: str) -> ErrorKinds | str:
        """What an evaluation got wrong, box by box, or a sentence that says what is missing."""
        return examination.examined(self.place, identity, key, split_digest)

    def split(self, split_digest: str) -> Store | str:
        """The converted images of a split, or a sentence that says what is missing."""
        return resampling.split_store(self.place, split_digest)
