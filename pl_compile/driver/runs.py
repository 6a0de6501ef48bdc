"""Finds the newest run and the base that it was trained on, for `plc export` without arguments."""

from pathlib import Path

from pl_compile.artifact.prompt_table import TABLE_NAME, read_prompt_table
from pl_compile.config.read import read_yaml
from pl_compile.errors import ArtifactError, BaseModelError
from pl_compile.weights.bases import find_base

RUNS = Path("runs")


def newest_table(runs: Path = RUNS) -> Path:
    """The newest prompt table in a folder of runs.

    Raises:
        ArtifactError: there is no table.
    """
    tables = sorted(runs.glob(f"*/{TABLE_NAME}"), key=lambda path: path.stat().st_mtime)
    if not tables:
        raise ArtifactError(
            "looking for the newest run",
            found=f"no {runs}/*/{TABLE_NAME}",
            fix="Name the prompt table with --prompts, or train one with plc train.",
        )
    return tables[-1]


def find_base_of(table: Path, base: str | None) -> Path:
    """The folder of the base: the one that was named, or the base of the table's run.

    Raises:
        ArtifactError: there is no such table, or it cannot be read.
        BaseModelError: no base was named, and the table lies in no run folder.
    """
    if not table.is_file():
        raise ArtifactError(
            f"reading the prompt table {table}",
            found="a folder" if table.is_dir() else "no such file",
            fix=f"A run leaves its table as {TABLE_NAME} in its folder.",
        )
    read_prompt_table(table)  # read first, so that an error names the table, not the base
    if base is not None:
        return find_base(base)
    config = table.parent / "config.yaml"
    recorded = read_yaml(config).data.get("base") if config.is_file() else None
    if recorded is None:
        raise BaseModelError(
            f"looking for the base of {table}",
            found="no config.yaml of a run beside it that names a base",
            fix="Name the base with --base.",
        )
    return find_base(str(recorded.data))
