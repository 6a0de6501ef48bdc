"""A run at Weights & Biases: config, curves, answers, and the run's results.

All local files lie under `RUN_FOLDER/wandb`, so that an offline run can be sent later with
`wandb sync`. A resumed run continues the one with the id in `RUN_FOLDER/wandb-run-id`.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pl_compile.artifact.files import write_atomically
from pl_compile.config.train import WandbConfig
from pl_compile.training.loggers.logger import PREDICTION_COLUMNS, scalars

_ID_NAME = "wandb-run-id"
# By default wandb waits for ever: with a dead network, a finished run's process would not end. This
# is long enough for a bundle of gigabytes; the rest can be sent with `wandb sync`.
_FINISH_SECONDS = 1800.0


class WeightsAndBiasesLogger:
    """A run of the `wandb` package.

    Args:
        config: project, name, mode.
        run_folder: an existing folder; gets `wandb/` and `wandb-run-id`.
        run_config: the resolved config, shown with the run; its "tasks" name the task numbers.
        resumed_at: the last step that a resumed run keeps; 0 for a new run.
        say: gets the address of the run.

    Raises:
        Exception: `wandb.init` failed: not logged in, no network, no such entity.
    """

    def __init__(
        self,
        config: WandbConfig,
        run_folder: Path,
        run_config: Mapping[str, Any],
        *,
        resumed_at: int,
        say: Callable[[str], None],
    ) -> None:
        import wandb

        run_folder = run_folder.resolve()  # wandb records the paths for a later `wandb sync`
        self._wandb = wandb
        self._name = config.name or run_folder.name
        self._log_artifacts = config.log_artifacts
        self._tasknames = [task["taskname"] for task in run_config["tasks"]]
        self._say = say
        self._environment = {"WANDB_DATA_DIR": str(run_folder / "wandb")}
        # With WANDB_MODE, users of wandb switch a whole machine offline, or switch wandb off.
        offline = "offline" in (config.mode, os.environ.get("WANDB_MODE"))
        if offline:  # even then wandb would send reports of its own errors over the network
            self._environment["WANDB_ERROR_REPORTING"] = "false"
        with _environment(self._environment):
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=self._name,
                id=_run_id(run_folder / _ID_NAME, resumed=resumed_at > 0),
                resume="allow",
                mode="offline" if offline else None,
                dir=run_folder,
                config=dict(run_config),
                allow_val_change=True,  # the files of a resumed run may lie elsewhere
                reinit="create_new",  # do not touch a run of the program that calls us
                settings=wandb.Settings(console="off", quiet=True, finish_timeout=_FINISH_SECONDS),
            )
            # wandb's own step may only grow. On our axis "step", the steps that a resumed run makes
            # again get the places that they had, instead of being refused.
            self._run.define_metric("*", step_metric="step")
        if not self._run.offline and self._run.url:
            say(f"Weights & Biases: {self._run.url}")

    def log(self, record: dict[str, Any]) -> None:
        """Adds a point to each curve that the record has a number for."""
        self._run.log({"step": record["step"], **scalars(record, self._tasknames)})

    def predictions(self, step: int, rows: Sequence[Mapping[str, str]]) -> None:
        """Adds a table with a row for each answer."""
        table = self._wandb.Table(
            columns=["step", *PREDICTION_COLUMNS],
            data=[[step, *(row[column] for column in PREDICTION_COLUMNS)] for row in rows],
        )
        with _environment(self._environment):
            self._run.log({"step": step, "predictions": table})

    def finish(self, artifacts: Sequence[Path]) -> None:
        """Stores the artifacts with the run and waits until everything is sent, or written."""
        try:
            with _environment(self._environment):
                for path in artifacts if self._log_artifacts else ():
                    self._store(path.resolve())
        finally:
            self._run.finish(exit_code=0)
        if self._run.offline:
            self._say(f"Weights & Biases: send it with: wandb sync {self._run.settings.sync_dir}")

    def abort(self) -> None:
        """Marks the run as failed."""
        self._run.finish(exit_code=1)

    def _store(self, path: Path) -> None:
        kind, files = ("prompt-table", [path])
        if path.is_dir():
            kind, files = "bundle", sorted(file for file in path.rglob("*") if file.is_file())
        name = re.sub(r"[^\w.-]", "-", self._name, flags=re.ASCII)[:100]
        artifact = self._wandb.Artifact(f"{name}-{kind}", type=kind)
        for file in files:
            artifact.add_file(
                str(file),
                name=file.relative_to(path).as_posix() if path.is_dir() else file.name,
                # Sent without a copy: a bundle may have gigabytes, and does not change.
                policy="immutable",
                skip_cache=True,
            )
        self._run.log_artifact(artifact)


def _run_id(path: Path, *, resumed: bool) -> str:
    """The id in a file for a resumed run; for a new run, a new id, which is written there."""
    if resumed and path.is_file():
        return path.read_text(encoding="utf-8").strip()
    run_id = secrets.token_hex(4)
    write_atomically(path, f"{run_id}\n".encode())
    return run_id


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the time of a `with` block, unless they are set already.

    wandb takes the folder for preparing artifacts, and whether it reports its errors, only so.
    """
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
