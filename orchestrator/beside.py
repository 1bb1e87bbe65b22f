"""What the storage has beside the states of trainings: documents of sweeps, run ids, looks, and what reports read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.errors import InputError
from orchestrator import examination, lease, resampling, run_ids
from orchestrator import looks as looks_document
from orchestrator.lease import Fence
from orchestrator.looks import Look, Looks
from orchestrator.resampling import Resampled
from orchestrator.storage import Change, Storage

if TYPE_CHECKING:
    from detector.data.store import Store
    from detector.error_kinds import ErrorKinds


class BesideTrainings:
    """The part of the ledger that isn't about the state of a training."""

    place: Storage
    storage: Path
    fence: Fence | None

    @property
    def address(self) -> str:
        """What names the storage on every node."""
        return self.place.address

    def sweep(self, key: str) -> Path:
        """Folder of a sweep."""
        return self.storage / "sweeps" / key

    def prepare(self) -> None:
        """Makes the folders. Raises ``UnreachableError`` if the storage can't be written."""
        self.place.prepare()

    def held(self, key: str) -> bool:
        """Whether a live driver runs the sweep ``key``."""
        return lease.held(self.place, key)

    def check(self) -> None:
        """Raises ``LeaseLostError`` if another driver has taken over since the fence was given."""
        if self.fence is not None:
            lease.check_fence(self.place, self.fence)

    def update(self, key: str, change: Change) -> None:
        """Changes a document, in the same step as it is asked whether another driver has taken over."""

        def checked(found: Any | None) -> Any | None:
            self.check()
            return change(found)

        self.place.update(key, checked)

    def fetched(self, path: Path) -> Path:
        """``path``, a file or folder that a record names, once it is on this node."""
        return self.place.fetch(path.relative_to(self.storage).as_posix())

    def publish(self, paths: Iterable[Path]) -> None:
        """Puts files that were written below ``storage`` on this node into the storage."""
        for path in paths:
            self.check()
            self.place.put(path, path.relative_to(self.storage).as_posix())

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
        run_ids.remember(self.update, sweep_key, run_id, row, seed)

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
        looks_document.remember(self.update, sweep_key, look)

    def resampled(self, identity: str, key: str, split_digest: str) -> Resampled | str:
        """AP of an evaluation over resamples of its images, or a sentence that says what is missing."""
        return resampling.resampled(self.place, identity, key, split_digest)

    def examined(self, identity: str, key: str, split_digest: str) -> ErrorKinds | str:
        """What an evaluation got wrong, box by box, or a sentence that says what is missing."""
        return examination.examined(self.place, identity, key, split_digest)

    def split(self, split_digest: str) -> Store | str:
        """The converted images of a split, or a sentence that says what is missing."""
        return resampling.split_store(self.place, split_digest)
