"""One of several processes: the runs of a JSON file, one after the other.

A run's rendezvous has a port of its own, or the next one could meet what is left of the last.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pl_compile.driver.train import train_run
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.parallel import local_part
from pl_compile.training.read_config import read_train_config

parts: list[float] = []


def weighed(*arguments: Any, **options: Any) -> FrozenBase:
    """A base, and how much of it is here."""
    base = FrozenBase(*arguments, **options)
    here = sum(local_part(parameter).numel() for parameter in base.model.parameters())
    parts.append(here / base.parameters)
    return base


with (
    patch("pl_compile.training.run.draw_curves", lambda *_: b"no picture"),  # it takes long
    patch("pl_compile.training.run.FrozenBase", weighed),
):
    for job in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(job["port"])
        config = read_train_config(Path(job["config"]))
        train_run(config, Path(job["output"]), resume=job["resume"])
        part = Path(job["output"]).parent / f"part-{os.environ['RANK']}"
        part.write_text(str(parts[-1]))
