"""By what a file of tensors begins, so that a plan can tell it from anything else without importing torch."""

from __future__ import annotations

from pathlib import Path

from detector.errors import InputError

# The first bytes of what torch.save writes: a zip, formerly pickles.
ZIP, PICKLE = b"PK\x03\x04", b"\x80"


def first_bytes(path: Path) -> bytes:
    """The first bytes of the file ``path``.

    Raises InputError where they aren't those of a file of tensors. Those after them may still be wrong.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file; give a model that can be loaded")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); give another file") from error
    if not start:
        raise InputError(f"{path} is empty; give a model that can be loaded")
    if path.suffix == ".safetensors":
        if start[8:] != b"{":  # after its length: a table of the tensors
            raise InputError(f"{path} is truncated or no safetensors file; fetch it again")
    elif not start.startswith((ZIP, PICKLE)):
        raise InputError(
            f"{path} is no checkpoint: torch.save didn't write it, nor is it named .safetensors; give a model that can "
            "be loaded"
        )
    return start
