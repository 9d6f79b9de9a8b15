"""In which folder a data set's files are: one that the user names, or else the first known place that has them."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from parallel_dl.errors import InputError
from parallel_dl.files import one_line

VARIABLE = "PARALLEL_DL_DATA"
DEBIAN = Path("/usr/share/datasets")  # where Debian's packages dataset-... put a folder each


def cache(dataset: str) -> Path:
    """The data set's folder in the user's cache: below $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the XDG specification: a relative path is to be ignored
        base = os.path.expanduser("~/.cache")
    return Path(base) / "parallel_dl" / dataset


def given_folder(
    data_dir: str | os.PathLike[str] | None, subfolders: Iterable[str], files: Collection[str], expected: str
) -> Path | None:
    """`data_dir`, or else the folder in the variable; or that subfolder of it which has any of `files`.

    None when neither is given. InputError when none of them is there: a folder that was named is never passed over in
    silence. `expected` says what it should have been.
    """
    folder = os.environ.get(VARIABLE) or None if data_dir is None else os.fsdecode(data_dir)
    if folder is None:
        return None
    candidates = [Path(folder), *(Path(folder, below) for below in subfolders)]
    for candidate in candidates:
        if not names_in(candidate).isdisjoint(files):
            return candidate
    said = folder if data_dir is not None else f"{VARIABLE}={folder}"
    try:
        os.listdir(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{said}: cannot be listed ({one_line(error)}); expected {expected}") from error
    raise InputError(f"{said}: has none of the files; expected {expected}")


def names_in(folder: Path) -> set[str]:
    """The names in a folder; none where it is missing or cannot be listed."""
    try:
        return set(os.listdir(folder))
    except (OSError, ValueError):
        return set()
