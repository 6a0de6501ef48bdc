"""One of several processes: the runs of a JSON file, one after the other.

A run's rendezvous has a port of its own, or the next one could meet what is left of the last.
"""

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

from pl_compile.driver.train import train_run
from pl_compile.training.read_config import read_train_config

# The picture of a run takes longer than a tiny run.
with patch("pl_compile.training.run.draw_curves", lambda *_: b"no picture"):
    for job in json.loads(Path(sys.argv[1]).read_text()):
        os.environ["MASTER_PORT"] = str(job["port"])
        config = read_train_config(Path(job["config"]))
        train_run(config, Path(job["output"]), resume=job["resume"])
