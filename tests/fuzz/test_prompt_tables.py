"""Prompts of strangers: tables of ours, training checkpoints, and adapters of PEFT."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzzing import (
    SCALARS,
    Arrays,
    attempt,
    damaged,
    fresh,
    fuzzed,
    json_texts,
    spoiled,
    spoiled_arrays,
    tiny_base,
    tiny_table,
    utf8,
)
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from pl_compile.artifact.prompt_table import PromptTable, read_prompt_table, write_prompt_table
from pl_compile.driver.bring_in import PeftImport, import_peft
from pl_compile.driver.describe import describe
from pl_compile.errors import PlcError
from pl_compile.families.read import read_decoder_config
from pl_compile.importers.run_checkpoint import FORMAT as CHECKPOINT
from pl_compile.importers.run_checkpoint import read_checkpoint_table
from pl_compile.training.pickled import tensors_of_pickle

_NAMES = st.text("abct_/.\0é", min_size=1, max_size=4) | st.sampled_from(("tone", "ask"))


@dataclass(frozen=True)
class TableFile:
    """Arrays and metadata of a table."""

    arrays: Arrays
    metadata: dict[str, str]


def _contents(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return arrays, file.metadata() or {}


@st.composite
def tables(draw: st.DrawFn, *, checkpoint: bool) -> TableFile:
    """The content of a table, or of a checkpoint with one, with wrong values in it."""
    good, metadata = _contents(tiny_table())
    for key in draw(st.sets(st.sampled_from(("tasks", "base", "format", "version")), max_size=2)):
        if key in ("tasks", "base"):
            metadata[key] = draw(json_texts(json.loads(metadata[key])))
        elif draw(st.booleans()):
            del metadata[key]
        else:
            metadata[key] = draw(st.sampled_from(("", "1.0", "2", "plc.bundle", "true")))
    arrays = draw(spoiled_arrays(good, _NAMES))
    if checkpoint:
        done = arrays.done
        arrays = Arrays({f"table/{name}": array for name, array in arrays.items()})
        arrays.done = done
        metadata["entries"] = metadata["tasks"]
        metadata["format"] = metadata.get("format", "").replace("plc.prompt-table", CHECKPOINT)
    return TableFile(arrays, metadata)


def _saved(content: TableFile) -> Path:
    path = fresh("table") / "prompts.safetensors"
    # Half a pair cannot be written by the library: the bytes are put in their place.
    metadata = {key: text.replace("\ud83d", "?") for key, text in content.metadata.items()}
    save_file(content.arrays, path, metadata)
    return path


def _check_rows(table: PromptTable, arrays: Arrays, prefix: str = "") -> None:
    """What was read are the file's numbers, and can be written and read again."""
    assert {prefix + name for name in table.entries} == {n for n in arrays if n.startswith(prefix)}
    for name, entry in table.entries.items():
        stored = arrays[prefix + name]
        assert stored.dtype == np.float32
        assert np.array_equal(entry.learned, stored)
    again = fresh("again") / "t.safetensors"
    write_prompt_table(table, again)
    assert {n: e.record() for n, e in read_prompt_table(again).entries.items()} == {
        n: e.record() for n, e in table.entries.items()
    }


@fuzzed(150, content=tables(checkpoint=False))
def test_a_table_holds_what_its_file_says_or_is_refused(content: TableFile) -> None:
    path = _saved(content)

    found = attempt(lambda: read_prompt_table(path))

    attempt(lambda: describe(path))
    if not isinstance(found, PlcError):
        _check_rows(found, content.arrays)


@fuzzed(80, content=tables(checkpoint=True))
def test_a_checkpoint_holds_what_its_file_says_or_is_refused(content: TableFile) -> None:
    path = _saved(content)

    found = attempt(lambda: read_checkpoint_table(path))

    attempt(lambda: describe(path))
    if not isinstance(found, PlcError):
        _check_rows(found, content.arrays, "table/")


@st.composite
def table_bytes(draw: st.DrawFn) -> bytes:
    """A table's file with wrong bytes."""
    data = tiny_table().read_bytes()
    return draw(damaged(data, first=8 + int.from_bytes(data[:8], "little")))


@fuzzed(100, data=table_bytes())
def test_wrong_bytes_of_a_table_are_refused_or_are_a_table(data: bytes) -> None:
    path = fresh("table") / "prompts.safetensors"
    path.write_bytes(data)

    found = attempt(lambda: read_prompt_table(path))

    attempt(lambda: describe(path))
    if not isinstance(found, PlcError):
        assert all(np.isfinite(entry.learned).all() for entry in found.entries.values())


@st.composite
def adapters(draw: st.DrawFn) -> tuple[str, Arrays]:
    """The config and the arrays of an adapter, some of them wrong."""
    base = read_decoder_config(tiny_base("llama"))
    prefix = draw(st.booleans())
    width = base.layers * 2 * base.kv_heads * base.head_dim if prefix else base.hidden
    rows = np.random.default_rng(0).normal(0, 1, (3, width)).astype(np.float32)
    config = {
        "base_model_name_or_path": "tiny",
        "inference_mode": True,
        "num_attention_heads": base.kv_heads,
        "num_layers": base.layers,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": 3,
        "peft_type": "PREFIX_TUNING" if prefix else "PROMPT_TUNING",
        "prefix_projection": False,
        "task_type": "CAUSAL_LM",
        "token_dim": base.kv_heads * base.head_dim if prefix else base.hidden,
    }
    text = json.dumps(config)
    if draw(st.booleans()):
        text = draw(json_texts(config))
    elif draw(st.booleans()):
        values = SCALARS | st.sampled_from(("LORA", "P_TUNING", "PREFIX_TUNING", 3.0, 2, True))
        text = json.dumps(draw(spoiled(config, values)))
    return text, draw(spoiled_arrays({"prompt_embeddings": rows}, _NAMES))


@fuzzed(150, adapter=adapters())
def test_an_adapter_is_the_numbers_of_its_file_or_is_refused(adapter: tuple[str, Arrays]) -> None:
    text, arrays = adapter
    folder = fresh("adapter")
    (folder / "adapter_config.json").write_bytes(utf8(text))
    save_file(arrays, folder / "adapter_model.safetensors")
    output = folder / "table.safetensors"
    wish = PeftImport(folder, output, "t", "{text} {label}", base=str(tiny_base("llama")))

    found = attempt(lambda: import_peft(wish))

    if not isinstance(found, PlcError):
        (stored,) = arrays.values()
        assert stored.dtype.kind == "f"
        learned = read_prompt_table(output).entry("t").learned
        if learned.ndim == 5:
            learned = learned.transpose(3, 0, 1, 2, 4).reshape(stored.shape)
        assert np.array_equal(learned, stored.astype(np.float32))
        assert np.isfinite(learned).all()


@st.composite
def adapter_bytes(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The two files of an adapter with wrong bytes in one of them."""
    folder = fresh("adapter-bytes")
    save_file({"prompt_embeddings": np.ones((3, 24), np.float32)}, folder / "a")
    config = {"num_virtual_tokens": 3, "peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}
    files = [json.dumps(config).encode(), (folder / "a").read_bytes()]
    wrong = draw(st.integers(0, 1))
    files[wrong] = draw(damaged(files[wrong], first=100))
    return files[0], files[1]


@fuzzed(80, files=adapter_bytes())
def test_wrong_bytes_of_an_adapter_are_refused_or_are_numbers(files: tuple[bytes, bytes]) -> None:
    folder = fresh("adapter")
    (folder / "adapter_config.json").write_bytes(files[0])
    (folder / "adapter_model.safetensors").write_bytes(files[1])

    output = folder / "table.safetensors"
    wish = PeftImport(folder, output, "t", "{text} {label}", base=str(tiny_base("llama")))

    found = attempt(lambda: import_peft(wish))

    if not isinstance(found, PlcError):
        assert np.isfinite(read_prompt_table(output).entry("t").learned).all()


@st.composite
def pickles(draw: st.DrawFn) -> bytes:
    """An adapter's pickle with wrong bytes."""
    path = fresh("pickles") / "a.bin"
    torch.save({"prompt_embeddings": torch.ones(3, 24)}, path)
    return draw(damaged(path.read_bytes(), first=300))


@fuzzed(60, data=pickles())
def test_a_wrong_pickle_is_refused_or_holds_numbers(data: bytes) -> None:
    path = fresh("pickle") / "adapter_model.bin"
    path.write_bytes(data)

    found = attempt(lambda: tensors_of_pickle(path))

    assert isinstance(found, PlcError) or all(a.dtype == np.float32 for a in found.values())
