"""What docs/targets.md says to have run on a GPU is what a machine has shown."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pl_compile.config import targets
from pl_compile.config.targets import TARGETS, Proof, proofs

HOME = Path(__file__).parents[2]


@pytest.fixture
def proven(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(HOME / "benchmarks"))
    import proven

    return proven


def day(*results: tuple[str, str, bool | None], device: str = "cuda") -> list[dict[str, Any]]:
    """Lines of a day; results are part, name and whether it was as expected."""
    run = {"run": "2026-12-01 10:00:00 0", "device": device}
    machine = {"GPU": "NVIDIA H200, 9.0, 139 GiB", "torch": "2.11", "tensorrt": "not installed"}
    lines: list[dict[str, Any]] = [
        {"part": "machine", **run, "name": name, "value": value} for name, value in machine.items()
    ]
    lines += [
        {"part": part, **run, "name": name, "value": 1, **({} if ok is None else {"ok": ok})}
        for part, name, ok in results
    ]
    parts = dict.fromkeys(["machine", *(part for part, _, _ in results)])
    return lines + [{"part": part, **run, "ended": "done", "seconds": 1.0} for part in parts]


def whole(part: str, form: str) -> list[tuple[str, str, bool | None]]:
    """All that a form must have shown."""
    names = ["task ask", "mixed batch, logits"]
    if part.startswith("onnx"):
        names = ["self-tests", "parity", "mixed batch", "entries", "operators on"]
    return [(part, f"{form}: {name}", True) for name in names]


def test_a_form_whose_every_result_was_as_expected_is_proven(proven: ModuleType) -> None:
    found = proven.proven_by(
        day(
            *whole("onnx-float32", "float32"),
            ("onnx-float32", "float32: decode", None),
            *whole("onnx-float16", "float16"),
            ("onnx-float16", "float16: sums", False),
            *whole("onnx-int4", "int4")[:-1],  # something was not shown
            *whole("tensorrt-float16", "float16"),
        )
    )

    assert found == [
        Proof(
            target,
            form,
            where="NVIDIA H200, 9.0, 139 GiB",
            when="2026-12-01",
            versions="torch 2.11",
        )
        for target, form in (("onnx-cuda", "float32"), ("tensorrt", "float16"))
    ]


def test_stand_ins_and_parts_that_did_not_end_prove_nothing(proven: ModuleType) -> None:
    results = whole("onnx-float32", "float32")
    lines = day(*results)

    assert proven.proven_by(day(*results, device="cpu")) == []
    assert proven.proven_by([line for line in lines if line["part"] != "machine"]) == []
    assert len(proven.proven_by(lines)) == 1
    killed = [line if line.get("ended") is None else {**line, "ended": "failed"} for line in lines]
    assert proven.proven_by(killed) == []
    # A form that could not even be made has no result but its error.
    assert proven.proven_by(day(("onnx-float32", "float32", False))) == []


def test_cells_and_section_follow(proven: ModuleType) -> None:
    page = (HOME / "docs" / "targets.md").read_text(encoding="utf-8")
    shown = proven.proven_by(
        day(
            *(line for form in ("float32", "int4") for line in whole(f"onnx-{form}", form)),
            *whole("tensorrt-float32", "float32"),
        )
    )

    changed = proven.page_with(page, shown)

    before, after = page.splitlines(), changed.splitlines()
    new = [line for line in after if line not in before]
    where = "NVIDIA H200, 9.0, 139 GiB | 2026-12-01 | torch 2.11 |"
    assert [line for line in new if where in line] == [
        f"| `onnx-cuda` | float32 | {where}",
        f"| `onnx-cuda` | int4 | {where}",
        f"| `tensorrt` | float32 | {where}",
    ]
    (cuda,) = (line for line in new if line.startswith("| `onnx-cuda` | any"))
    assert cuda.split("|")[3:7] == [" run ", " built ", " refused ", " built; int4: run "]
    (plans,) = (line for line in new if line.startswith("| `tensorrt` | that of"))
    assert plans.split("|")[3] == " run "
    assert "run" not in "".join(plans.split("|")[4:])


def test_the_page_says_what_was_shown_and_no_more(proven: ModuleType) -> None:
    page = (HOME / "docs" / "targets.md").read_text(encoding="utf-8")

    assert page == proven.page_with(page, proofs())
    (cuda,) = (line for line in page.splitlines() if line.startswith("| `onnx-cuda` | any"))
    assert cuda.count("run") == len({p.form for p in proofs() if p.target == "onnx-cuda"})


def test_a_cell_says_refused_where_the_target_takes_no_such_thing(proven: ModuleType) -> None:
    rows = [line.strip("|").split("|") for line in proven.tried_table([]).splitlines()[2:]]

    for name, _, float32, float16, bfloat16, _, ranks in rows:
        target = TARGETS[name.strip(" `")]
        cells = {"float32": float32, "float16": float16, "bfloat16": bfloat16}
        refused = {dtype for dtype, cell in cells.items() if cell.strip() == "refused"}
        assert refused == set(cells) - set(target.dtypes)
        assert (ranks.strip() == "refused") is not target.ranks


def test_what_ran_is_written_down_once_for_each_gpu(
    proven: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "proven.jsonl"
    file.write_text("")
    for module in (proven, targets):
        monkeypatch.setattr(module, "PROOFS", file)
    old, new = (Proof("tensorrt", "float32", "H200", when, "") for when in ("1", "2"))

    proven.add([old])
    proven.add([new, replace(new, where="L4")])

    assert proofs() == [new, replace(new, where="L4")]
