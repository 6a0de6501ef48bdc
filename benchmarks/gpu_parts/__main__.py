"""Runs one part: its results are JSON lines on standard output, all else goes to standard error."""

import importlib
import json
import os
import sys
import traceback
from typing import Any

from gpu_parts.report import Job, MissingError, Report, one_line


def main() -> None:
    """The part that the command line names."""
    name, options = sys.argv[1], json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print

    def write(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    try:
        importlib.import_module(f"gpu_parts.{name}").run(Report(write), Job(**options))
    except (MissingError, ImportError) as error:
        write({"ended": "missing", "why": one_line(error)})
    except Exception as error:  # the next part runs all the same
        traceback.print_exc()
        write({"ended": "failed", "why": one_line(error)})
    else:
        write({"ended": "done"})


if __name__ == "__main__":
    main()
