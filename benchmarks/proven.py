"""Which targets ran on a GPU: from the lines of `gpu_check.py` into docs/targets.md.

    python benchmarks/proven.py build/gpu-check/results.jsonl

What a form of a target has shown (every result of it as expected, on a GPU) becomes a line of
`proven.jsonl` beside this file, and from all of these the cells of the table and the section "Run
on a GPU" of the page are written. So no cell says "run" that no machine has shown.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_check import DONE, Record
from gpu_parts.shown import SHOWN

HERE = Path(__file__).resolve().parent
PROVEN = HERE / "proven.jsonl"
PAGE = HERE.parent / "docs" / "targets.md"

# By target: its forms with their columns of the table.
TARGETS: dict[str, dict[str, str]] = {
    "onnx-cuda": {"float32": "float32", "float16": "float16", "int4": "int8, int4"},
    "tensorrt": {"float32": "float32", "float16": "float16"},
}
# What the machine's part says, in this order.
_WHERE, _VERSIONS = "GPU", ("driver", "torch", "onnxruntime", "tensorrt")

_BEGIN, _END = "<!-- proven: written by benchmarks/proven.py -->", "<!-- end of proven -->"


def proven_by(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What a day has shown.

    Args:
        lines: the last run of each part.
    """
    machine = {
        line["name"]: str(line["value"])
        for line in lines
        if line["part"] == "machine" and "name" in line and line["device"] == "cuda"
    }
    if _WHERE not in machine:
        return []
    found = []
    for target, forms in TARGETS.items():
        for form in forms:
            part = f"{target.partition('-')[0]}-{form}"
            mine = [line for line in lines if line["part"] == part and line["device"] == "cuda"]
            if not any(line.get("ended") == DONE for line in mine):
                continue
            results = [line for line in mine if re.match(f"{form}(:|$)", line.get("name", ""))]
            checked = {line["name"]: line["ok"] for line in results if "ok" in line}
            missing = [
                what
                for what in SHOWN[target]
                if not any(name.startswith(f"{form}: {what}") for name in checked)
            ]
            if not missing and all(checked.values()):
                versions = [f"{name} {machine[name]}" for name in _VERSIONS if name in machine]
                found.append(
                    {
                        "target": target,
                        "form": form,
                        "where": machine[_WHERE],
                        "when": str(results[0]["run"]).partition(" ")[0],
                        "versions": "; ".join(v for v in versions if "not installed" not in v),
                    }
                )
    return found


def page_with(page: str, proven: Sequence[Mapping[str, str]]) -> str:
    """The page with the cells and the section that `proven` says.

    Raises:
        ValueError: the page has no such table or section.
    """
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"{PAGE}: no section between '{_BEGIN}' and '{_END}'")
    columns = re.search(r"^\| target \| GPU \|.*$", head, re.MULTILINE)
    if columns is None:
        raise ValueError(f"{PAGE}: no table with the columns target and GPU")
    names = [cell.strip() for cell in columns[0].strip("|").split("|")]
    for target, forms in TARGETS.items():
        row = re.search(rf"^\| `{target}` \|.*$", head[columns.end() :], re.MULTILINE)
        if row is None:
            raise ValueError(f"{PAGE}: no row of {target}")
        cells = [cell.strip() for cell in row[0].strip("|").split("|")]
        for form, column in forms.items():
            if any((each["target"], each["form"]) == (target, form) for each in proven):
                place = names.index(column)
                others = cells[place].partition(";")[0]
                cells[place] = "run" if form == column else f"{others}; {form}: run"
        line = "| " + " | ".join(cells) + " |"
        start = columns.end() + row.start()
        head = head[:start] + line + head[start + len(row[0]) :]
    rows = [
        f"| `{each['target']}` | {each['form']} | {each['where']} | {each['when']} | "
        f"{each['versions']} |"
        for each in proven
    ]
    table = ["| target | form | GPU | when | with |", "|---|---|---|---|---|", *rows]
    section = "\n".join(table) if rows else "Nothing yet."
    return f"{head}{_BEGIN}\n{section}\n{_END}{tail}"


def read_proven(path: Path = PROVEN) -> list[dict[str, str]]:
    """What was shown so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    """Adds what a record shows; 1 where it shows nothing of a GPU."""
    if len(sys.argv) != 2:
        print((__doc__ or "").splitlines()[2].strip(), file=sys.stderr)
        return 2
    new = proven_by(Record(Path(sys.argv[1])).latest("cuda"))
    if not new:
        print("no form of a target ran on a GPU there, with every result as expected")
        return 1
    kept = {(each["target"], each["form"], each["where"]): each for each in read_proven()}
    kept |= {(each["target"], each["form"], each["where"]): each for each in new}
    PROVEN.write_text("".join(json.dumps(each) + "\n" for each in kept.values()), encoding="utf-8")
    page = page_with(PAGE.read_text(encoding="utf-8"), list(kept.values()))
    PAGE.write_text(page, encoding="utf-8")
    for each in new:
        print(f"{each['target']} {each['form']}: {each['where']}, {each['when']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
