from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pl_compile.config.damage import damage_of

WHOLE = save({"a": np.zeros(100, np.float32)})


@pytest.mark.parametrize("kept", [1, 7, 8, 20, len(WHOLE) - 1])
def test_a_file_that_was_cut_is_told_apart(tmp_path: Path, kept: int) -> None:
    (tmp_path / "a").write_bytes(WHOLE[:kept])

    found, fix = damage_of(tmp_path / "a")

    assert found.startswith(f"cut short: {kept} bytes, at least ")
    assert fix == "Copy it again."


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (WHOLE + b"x", f"{len(WHOLE) + 1} bytes, {len(WHOLE)} by its header"),
        ("base: tiny # of café\n".encode(), "a text, such as a config or examples"),
        (b"{'a'}: " + "é".encode() * 900, "a text, such as a config or examples"),
        (b"PK\x03\x04" + bytes(99), "a zip, such as torch.save writes"),
        (b"\xff" * 100, "not safetensors: such a file begins with a length"),
        (b"\x08\x0c\x12\x0apl_compile\x1a\x00" * 9, "not safetensors: such a file begins with"),
        (WHOLE, ""),
        (WHOLE[:8] + b"[" * (len(WHOLE) - 8), ""),
    ],
)
def test_what_a_file_is_instead(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "a").write_bytes(content)

    assert damage_of(tmp_path / "a")[0].startswith(found)
    assert found or damage_of(tmp_path / "a") == ("", "")
