"""The tables of docs/targets.md, from `config/targets.py`; and what ran on a GPU, for that table.

    python benchmarks/proven.py [build/gpu-check/results.jsonl]

A form of a target becomes a line of `pl_compile/config/proven.jsonl` if, by the lines of
`gpu_check.py`, every result of it on a GPU was as expected. Then the page's tables are written. So
a cell says "run" only if a machine has shown it.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gpu_check import DONE, Record
from gpu_parts.shown import SHOWN

from pl_compile.config.targets import PROOFS, TARGETS, Proof, Target, Tried, proofs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "targets.md"

# The forms of each target that the GPU check looks at.
FORMS = {"onnx-cuda": ("float32", "float16", "int4"), "tensorrt": ("float32", "float16")}
_UNTRIED = "\N{EN DASH}"
# Results of the part `machine`, in this order.
_WHERE, _VERSIONS = "GPU", ("driver", "torch", "onnxruntime", "tensorrt")


def proven_by(lines: Sequence[Mapping[str, Any]]) -> list[Proof]:
    """What one record of `gpu_check.py` has shown.

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
    for target, forms in FORMS.items():
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
                    Proof(
                        target,
                        form,
                        where=machine[_WHERE],
                        when=str(results[0]["run"]).partition(" ")[0],
                        versions="; ".join(v for v in versions if "not installed" not in v),
                    )
                )
    return found


def page_with(page: str, proven: Sequence[Proof]) -> str:
    """The page with its three tables written anew.

    Args:
        page: the page's text, with comments that name the tables around each.
        proven: what ran on a GPU.

    Raises:
        ValueError: the page has no such comments.
    """
    tables = {
        "needs": needs_table(),
        "tried": tried_table(proven),
        "proven": proven_table(proven) if proven else "Nothing yet.",
    }
    for name, table in tables.items():
        begin = f"<!-- {name}: written by benchmarks/proven.py -->"
        end = f"<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, ended, after = rest.partition(end)
        if not found or not ended:
            raise ValueError(f"{PAGE}: nothing between '{begin}' and '{end}'")
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def needs_table() -> str:
    """What each target needs."""
    rows = [[f"`{t.name}`", t.runs_on, t.to_build, t.to_run] for t in TARGETS.values()]
    return _table(["target", "runs on", "to build it", "to run it"], rows)


def tried_table(proven: Sequence[Proof]) -> str:
    """Which forms of each target were built and run."""
    rows = [
        [f"`{target.name}`", tried.gpu, *_cells(target, tried, proven)]
        for target in TARGETS.values()
        for tried in target.tried
    ]
    columns = ["target", "GPU", "float32", "float16", "bfloat16", "int8, int4", "ranks"]
    return _table(columns, rows)


def _cells(target: Target, tried: Tried, proven: Sequence[Proof]) -> Iterator[str]:
    forms = {proof.form for proof in proven if proof.target == target.name}
    for field in fields(tried)[1:]:
        said = getattr(tried, field.name) or _untried(target, field.name)
        if field.name in forms:
            yield "run"
        elif field.name == "few_bits" and "int4" in forms:
            yield f"{said}; int4: run"
        else:
            yield said


def _untried(target: Target, cell: str) -> str:
    """The text of a cell where nothing was tried: whether the target would take it."""
    if cell == "ranks":
        return _UNTRIED if target.ranks else "refused"
    return _UNTRIED if cell == "few_bits" or cell in target.dtypes else "refused"


def proven_table(proven: Sequence[Proof]) -> str:
    """What ran on a GPU."""
    rows = [[f"`{p.target}`", p.form, p.where, p.when, p.versions] for p in proven]
    return _table(["target", "form", "GPU", "when", "with"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles, *lines = (
        "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
        for cells in (columns, *rows)
    )
    return "\n".join([titles, "|" + "---|" * len(columns), *lines])


def add(new: Sequence[Proof]) -> None:
    """Records what ran, in place of earlier results of the same GPU for the same forms."""
    kept = {(p.target, p.form, p.where): p for p in (*proofs(), *new)}
    lines = [json.dumps(asdict(proof)) for proof in kept.values()]
    PROOFS.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main() -> int:
    """Adds what a record shows, and writes the page; returns 1 if it shows nothing of a GPU."""
    if len(sys.argv) > 2:
        print((__doc__ or "").splitlines()[2].strip(), file=sys.stderr)
        return 2
    new = proven_by(Record(Path(sys.argv[1])).latest("cuda")) if len(sys.argv) == 2 else []
    if len(sys.argv) == 2 and not new:
        print("no form of a target ran on a GPU there, with every result as expected")
        return 1
    add(new)
    page = page_with(PAGE.read_text(encoding="utf-8"), proofs())
    PAGE.write_text(page, encoding="utf-8")
    for proof in new:
        print(f"{proof.target} {proof.form}: {proof.where}, {proof.when}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
