"""Bundles and tables of an earlier release open, and answer as they did there.

`earlier_bundles.tar.xz` was made by commit 7d9d94c: random bases of `write_tiny_base`, tasks of
`random_table`, answers of `Session.generate`, all of the code of that commit; reports are left out.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pl_compile.artifact.bundle import read_bundle
from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.driver.verify import verify_bundle
from pl_compile.runtime import Request, Session

ARCHIVE = Path(__file__).with_name("earlier_bundles.tar.xz")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundles, the answers of each, and a table."""
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", ["float", "native-int4", "learned-prefix"])
def test_a_bundle_answers_as_the_release_that_made_it(earlier: Path, name: str) -> None:
    answers = json.loads((earlier / f"{name}.json").read_text(encoding="utf-8"))
    requests = [
        Request(each["task"], each["fields"], max_tokens=each["max_tokens"]) for each in answers
    ]

    with Session.open(earlier / name) as session:
        found = session.generate(requests)

    assert [(each.text, list(each.token_ids)) for each in found] == [
        (each["text"], each["token_ids"]) for each in answers
    ]
    assert verify_bundle(earlier / name).passed


def test_a_table_holds_what_the_bundle_of_it_does(earlier: Path) -> None:
    table = read_prompt_table(earlier / "learned-prefix.safetensors")
    bundle = read_bundle(earlier / "learned-prefix")

    assert list(table.entries) == list(bundle.entries) == ["tone", "ask", "order"]
    for name, entry in table.entries.items():
        assert entry.task == bundle.entries[name].task
        np.testing.assert_array_equal(entry.rows, bundle.entries[name].rows)
    learned, served = (each.entries["order"].prefix_kv for each in (table, bundle))
    assert learned is not None
    assert served is not None
    np.testing.assert_array_equal(learned, served)
