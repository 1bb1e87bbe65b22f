"""Which errors of bringing a run up to date are of the training's own files, and not of the tracking server."""

from __future__ import annotations

from detector.errors import InputError
from orchestrator.runs import chain

OF_FILES = (InputError, ValueError, TypeError, KeyError, IndexError, AttributeError, FileNotFoundError)
"""What reading a file raises that is missing, cut short or not what it should be."""
OF_SERVERS = ("mlflow", "requests", "urllib3", "sqlalchemy", "boto3", "botocore", "pyarrow")
"""Packages whose errors, some of which are ValueErrors, come from a request."""


def is_of_files(error: BaseException) -> bool:
    """Whether ``error`` says that a file can't be read, so that asking again later changes nothing."""
    asked = any(type(link).__module__.partition(".")[0] in OF_SERVERS for link in chain(error))
    return isinstance(error, OF_FILES) and not asked
