"""Bundles whose JSON somebody altered and signed again: refused in our words, or served right."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pl_compile.driver.describe import describe
from pl_compile.driver.export import export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError, PlcError
from pl_compile.runtime import Request, Session
from pl_compile.testing import random_table, sign_bundle

FILES = (
    "manifest.json",
    "tasks/tone/labels.json",
    "tasks/tone/task.json",
    "tasks/ask/task.json",
    "tasks/order/task.json",
)
REQUESTS = [
    Request("tone", {"sentence": "the year was cold"}),
    Request("ask", {"question": "who was there?", "place": "the kitchen"}, max_tokens=4),
    Request("order", {"request": "timer 12 minutes"}, max_tokens=4),
]

_NUMBERS = st.sampled_from([0, 1, -1, 2, 3, 300, 1 << 16, 1 << 31, 1 << 63, 10**30, -(10**30)])
_WORDS = ("", "x", "tone", "../x", "great", "float16", "int4", "baked", "\ud800", "{", "\x00")
_VALUES: st.SearchStrategy[Any] = st.one_of(
    _NUMBERS,
    st.sampled_from([None, True, False, 0.5, 1.0, -0.0, 1e308]),
    st.sampled_from(_WORDS),
    st.sampled_from([[], {}, [[]], [1], ["x"], {"x": 1}]),
)


@pytest.fixture(scope="module")
def bundle(tiny_bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutated")
    base = tiny_bases["llama"]
    table = random_table(base, folder / "table.safetensors", prefix=True)
    request = ExportRequest(table, base, folder / "bundle", capacity=60, measure_parity=False)
    return export_bundle(request).bundle


def _place(content: Any, data: st.DataObject) -> tuple[Any, Any]:
    """A holder in a tree of lists and dicts, and a key or index of it."""
    holder = content
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = data.draw(st.sampled_from(keys))
        inner = holder[key]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 3)) == 0:
            return holder, key
        holder = inner


def _sorted(content: Any) -> str:
    return json.dumps(content, sort_keys=True)


def _altered(content: Any, data: st.DataObject) -> Any:
    holder, key = _place(content, data)
    value = holder[key]
    how = data.draw(st.sampled_from(["replace", "remove", "repeat", "shift", "reorder"]))
    if how == "remove":
        del holder[key]
    elif how == "reorder" and isinstance(holder, dict):  # which changes nothing
        items = [*holder.items()][::-1]
        holder.clear()
        holder.update(items)
    elif how == "repeat" and isinstance(holder, list):
        holder.append(value)
    elif how == "repeat":
        holder[f"{key}x"] = value
    elif how == "shift" and type(value) is int:
        holder[key] = value + data.draw(st.sampled_from([-2, -1, 1, 2]))
    elif how == "shift" and isinstance(value, str):
        holder[key] = data.draw(st.sampled_from([value[1:], value[:-1], value * 2]))
    else:
        holder[key] = data.draw(_VALUES)
    return content


def _answers(bundle: Path) -> list[tuple[int, ...]]:
    results = Session.open(bundle, max_batch=3).generate(REQUESTS)
    return [result.token_ids for result in results]


@pytest.mark.parametrize("name", FILES)
def test_an_altered_bundle_is_refused_or_answers_as_before(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    before = _answers(bundle)
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    text = (copy / name).read_text(encoding="utf-8")
    trials: Counter[str] = Counter()

    @given(st.data())
    @settings(
        derandomize=True,
        deadline=None,
        max_examples=100,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    def trial(data: st.DataObject) -> None:
        content = _altered(json.loads(text), data)
        same = _sorted(content) == _sorted(json.loads(text))
        (copy / name).write_text(json.dumps(content), encoding="utf-8")
        if name != "manifest.json":
            sign_bundle(copy)
        try:
            json.dumps(describe(copy), allow_nan=False)
            found = _answers(copy)
        except PlcError:
            assert not same
            trials["refused"] += 1
            return
        trials["served"] += 1
        for request, ids, expected in zip(REQUESTS, found, before, strict=True):
            # A task may say another template or end: that is another task, and its own answer is
            # right. No other one may change.
            may_differ = name == f"tasks/{request.task}/task.json" and not same
            assert ids == expected or may_differ

    trial()
    assert min(trials["served"], trials["refused"]) >= 3, trials


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_caches_of_another_type_than_the_graph_takes_are_refused(
    bundle: Path, tmp_path: Path, dtype: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    text = (copy / "manifest.json").read_text(encoding="utf-8")
    (copy / "manifest.json").write_text(text.replace('"float32"', f'"{dtype}"'), encoding="utf-8")

    with pytest.raises(ArtifactError, match=rf"'past_key\.0' .*; expected tensor\({dtype}\)"):
        Session.open(copy)
