"""The few errors that are meant for people: one sentence saying what was read, what was expected and what to do."""

from __future__ import annotations


class InputError(Exception):
    """The specification, the data or a checkpoint is wrong; nothing was started. Commands exit with status 2."""


class TrainingError(Exception):
    """A training can't go on: it has become non-finite. Commands exit with status 3."""


class UnreachableError(Exception):
    """The cluster, the storage, the tracking server or a download can't be reached. Commands exit with status 4."""
