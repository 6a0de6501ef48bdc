"""The report of an export in its bundle: `report.json`, and `report.html` for people."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pl_compile.artifact.bundle import REPORT, REPORT_PAGE, write_json
from pl_compile.config.strict_json import read_json_object
from pl_compile.errors import ArtifactError
from pl_compile.report.model import Report, report_of
from pl_compile.report.page import report_page


def write_report(bundle: Path, report: Report, *, record: Mapping[str, Any] | None = None) -> None:
    """Writes both files.

    Args:
        bundle: its folder.
        report: what the page shows.
        record: the content of the JSON file, where that is more than `report` knows.
    """
    write_json(bundle / REPORT, asdict(report) if record is None else record)
    (bundle / REPORT_PAGE).write_text(report_page(report), encoding="utf-8")


def read_report(bundle: Path) -> tuple[dict[str, Any], Report] | None:
    """The record in a bundle's report, with what other releases wrote, and what it says.

    Returns:
        Both; None if the report was removed.

    Raises:
        ArtifactError: the file holds something else.
    """
    path = bundle / REPORT
    doing, fix = f"reading {path}", "Remove it: no runtime reads it."
    try:
        record = read_json_object(path, ArtifactError, doing, fix=fix)
        return record, report_of(record)
    except FileNotFoundError:
        return None
    except ValueError as error:  # no sum protects this file
        raise ArtifactError(doing, found=str(error), fix=fix) from error
