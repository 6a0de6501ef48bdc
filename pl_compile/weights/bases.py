"""Where a base lies: under a known name in the cache, or in a Hugging Face folder of the user."""

import os
from pathlib import Path

from pl_compile.errors import BaseModelError, reason_of

DEFAULT_BASE = "smollm2-135m"


def cache_folder() -> Path:
    """`PLC_CACHE`, else `~/.cache/plc`."""
    return Path(os.environ.get("PLC_CACHE") or Path.home() / ".cache" / "plc")


def cached_base_folder(name: str) -> Path:
    """Where `plc fetch` puts the base `name`."""
    return cache_folder() / "bases" / name


def find_base(base: str) -> Path:
    """The folder of a base, given its folder or the name it was fetched under.

    Raises:
        BaseModelError: there is neither a folder nor a fetched base of that name.
    """
    doing = f"looking for the base '{base}'"
    for folder in (Path(base), cached_base_folder(base)):
        try:
            if (folder / "config.json").is_file():
                return folder
            is_folder = folder.is_dir()
        except OSError as error:  # the name is too long, or the folder may not be read
            raise BaseModelError(doing, found=reason_of(error)) from error
        if is_folder:
            raise BaseModelError(
                doing,
                found=f"{folder} holds no config.json",
                expected="a Hugging Face model folder",
                fix=_snapshots_in(folder),
            )
    raise BaseModelError(
        doing,
        found="no such folder, and nothing fetched under that name",
        fix=f"Run: plc fetch {DEFAULT_BASE}, or give a Hugging Face folder.",
    )


def _snapshots_in(folder: Path) -> str:
    """What to name instead, if this is a model's folder in Hugging Face's own cache."""
    found = sorted(path.parent for path in folder.glob("snapshots/*/config.json"))
    return f"Name the snapshot in it: {' or '.join(map(str, found[:3]))}." if found else ""
