"""Loggers, which get a run's records besides `metrics.jsonl`: one file each; all are a `Logger`.

A logger that fails during the run is reported once, and the run goes on. A logger that cannot start
ends the run before anything heavy, since the user asked for it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pl_compile.config.train import LoggingConfig
from pl_compile.errors import MissingExtraError, PlcError, TrainingError
from pl_compile.training.loggers.guard import GuardedLogger, one_line
from pl_compile.training.loggers.logger import PREDICTION_COLUMNS, Logger
from pl_compile.training.loggers.tensorboard import TensorBoardLogger
from pl_compile.training.loggers.weights_and_biases import WeightsAndBiasesLogger

__all__ = ["PREDICTION_COLUMNS", "Logger", "need_loggers", "open_loggers"]


def need_loggers(config: LoggingConfig) -> None:
    """Raises `MissingExtraError` unless the packages of all wanted loggers are installed."""
    for wanted, name, package in (
        (config.tensorboard, "TensorBoard", "tensorboard"),
        (config.wandb is not None, "Weights & Biases", "wandb"),
    ):
        if wanted and not _is_installed(package):
            raise MissingExtraError(f"logging to {name}", package=package, extra=package)


def open_loggers(
    config: LoggingConfig,
    run_folder: Path,
    run_config: dict[str, Any],
    *,
    resumed_at: int,
    say: Callable[[str], None] = lambda line: None,
) -> list[Logger]:
    """The loggers that `config` asks for, ready for records.

    Args:
        config: says which loggers.
        run_folder: an existing folder; gets `tensorboard/`, `wandb/` and `wandb-run-id`.
        run_config: the resolved config as plain data, with the tasks under "tasks".
        resumed_at: the last step that a resumed run keeps; 0 for a new run.
        say: gets the address of the run, and a warning for each logger that fails.

    Raises:
        MissingExtraError: a logger's package is not installed.
        TrainingError: a logger cannot start: the folder cannot be written, the user is not logged
            in, the server cannot be reached. Those already open are closed.
    """
    need_loggers(config)
    loggers: list[Logger] = []
    with ExitStack() as if_one_cannot_start:

        def add(name: str, logger: Logger) -> None:
            loggers.append(GuardedLogger(logger, name, say))
            if_one_cannot_start.callback(loggers[-1].abort)

        if config.tensorboard:
            with _starting("TensorBoard", fix="Mend that, or set logging.tensorboard: false."):
                folder = run_folder / "tensorboard"
                add("TensorBoard", TensorBoardLogger(folder, run_config, resumed_at=resumed_at))
        if config.wandb:
            fix = "Run 'wandb login', or set logging.wandb.mode: offline."
            with _starting("Weights & Biases", fix=fix):
                run = WeightsAndBiasesLogger(
                    config.wandb, run_folder, run_config, resumed_at=resumed_at, say=say
                )
                add("Weights & Biases", run)
        if_one_cannot_start.pop_all()
    return loggers


@contextmanager
def _starting(name: str, *, fix: str) -> Iterator[None]:
    try:
        yield
    except PlcError:
        raise
    except Exception as error:  # the packages' exceptions have no common class
        raise TrainingError(f"starting to log to {name}", found=one_line(error), fix=fix) from error


def _is_installed(package: str) -> bool:
    # wandb writes folders named "wandb", and Python takes one in the current folder for a package.
    # Such a package has no origin.
    spec = find_spec(package)
    return spec is not None and spec.origin is not None
