"""Runs one part: its results are JSON lines on standard output, all else goes to standard error."""

import json
import os
import sys
import time

_BEGAN = time.monotonic()  # before any slow import


def main() -> None:
    """The part that the command line names."""
    import importlib
    import traceback
    from typing import Any

    from gpu_parts.report import Job, OutOfTimeError, Report, is_missing, one_line

    (name, _, what), options = sys.argv[1].partition("-"), json.loads(sys.argv[2])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # for whatever libraries print

    def write(line: dict[str, Any]) -> None:
        out.write(json.dumps(line) + "\n")
        out.flush()

    job = Job(what=what, began=_BEGAN, **options)
    try:
        importlib.import_module(f"gpu_parts.{name}").run(Report(write), job)
    except OutOfTimeError as error:
        write({"ended": "out of time", "why": str(error)})
    except Exception as error:  # the next part must still run
        traceback.print_exc()
        write({"ended": "missing" if is_missing(error) else "failed", "why": one_line(error)})
    else:
        write({"ended": "done"})


if __name__ == "__main__":
    main()
