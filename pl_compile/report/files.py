"""The report of an export in its bundle: `report.json`, and `report.html` for people."""

from dataclasses import asdict
from pathlib import Path

from pl_compile.artifact.bundle import REPORT, REPORT_PAGE, write_json
from pl_compile.config.strict_json import read_json_object
from pl_compile.errors import ArtifactError
from pl_compile.report.model import Report, report_of
from pl_compile.report.page import report_page


def write_report(bundle: Path, report: Report) -> None:
    """Writes both files."""
    write_json(bundle / REPORT, asdict(report))
    (bundle / REPORT_PAGE).write_text(report_page(report), encoding="utf-8")


def read_report(bundle: Path) -> Report | None:
    """The report of a bundle, also one of an earlier release; None if it was removed.

    Raises:
        ArtifactError: the file holds something else.
    """
    path = bundle / REPORT
    doing, fix = f"reading {path}", "Remove it: no runtime reads it."
    try:
        return report_of(read_json_object(path, ArtifactError, doing, fix=fix))
    except FileNotFoundError:
        return None
    except ValueError as error:  # no sum protects this file
        raise ArtifactError(doing, found=str(error), fix=fix) from error
