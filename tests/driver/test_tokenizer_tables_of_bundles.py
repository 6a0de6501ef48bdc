"""The tables of a bundle's tokenizer: written with it, or it says why not."""

import json
import shutil
from pathlib import Path

import pytest

from pl_compile.artifact.bundle import TABLES_NAME, read_bundle
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.errors import ArtifactError
from pl_compile.testing import Told, random_table
from pl_compile.text.tables import tables_of


def _exported(base: Path, folder: Path, listener: Told) -> ExportResult:
    random_table(base, folder / "table.safetensors")
    request = ExportRequest(folder / "table.safetensors", base, folder / "bundle")
    return export_bundle(request, progress=listener)


def test_a_bundle_has_the_tables_of_its_tokenizer(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    listener = Told()
    result = _exported(tiny_bases["llama"], tmp_path, listener)

    bundle = read_bundle(result.bundle)
    text = (result.bundle / "tokenizer.json").read_text(encoding="utf-8")
    assert TABLES_NAME in bundle.files
    assert (result.bundle / TABLES_NAME).read_bytes() == tables_of(text)
    assert bundle.manifest.no_tokenizer_tables is None
    assert not any(TABLES_NAME in line for line in listener.lines)


@pytest.fixture
def without_tables(tiny_bases: dict[str, Path], tmp_path: Path) -> tuple[ExportResult, Told]:
    """A bundle whose tokenizer divides words as no table can say."""
    base = Path(shutil.copytree(tiny_bases["llama"], tmp_path / "base"))
    file = base / "tokenizer.json"
    spec = json.loads(file.read_text(encoding="utf-8"))
    spec["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Punctuation", "behavior": "Isolated"}, spec["pre_tokenizer"]],
    }
    file.write_text(json.dumps(spec), encoding="utf-8")
    listener = Told()
    return _exported(base, tmp_path, listener), listener


def test_a_bundle_says_why_it_has_no_tables(without_tables: tuple[ExportResult, Told]) -> None:
    result, listener = without_tables

    bundle = read_bundle(result.bundle)
    reason = bundle.manifest.no_tokenizer_tables
    assert TABLES_NAME not in bundle.files
    assert reason is not None
    assert "Punctuation" in reason
    assert result.verdict == "passed"
    [line] = [line for line in listener.lines if TABLES_NAME in line]
    assert "the C and C++ runtime" in line
    assert reason in line


def test_a_manifest_that_has_both_is_refused(without_tables: tuple[ExportResult, Told]) -> None:
    result, _ = without_tables
    manifest = json.loads((result.bundle / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][TABLES_NAME] = manifest["files"]["tokenizer.json"]
    (result.bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")

    with pytest.raises(ArtifactError, match="no_tokenizer_tables 'the pre-tokenizer Punctuation"):
        read_bundle(result.bundle)
