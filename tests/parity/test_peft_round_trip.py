"""Our adapters in PEFT's hands, and PEFT's in ours: the same logits as `transformers` alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import processors
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from pl_compile.artifact.prompt_table import PromptTable, TaskEntry, read_prompt_table
from pl_compile.config.task import TaskConfig
from pl_compile.driver.bring_in import PeftImport, import_peft
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES
from pl_compile.importers.peft import write_peft_adapter
from pl_compile.runtime.served_task import ServedTask
from pl_compile.testing import (
    assert_close,
    byte_fallback_tokenizer,
    random_table,
    write_tiny_base,
)
from pl_compile.text.render import SequenceRules
from pl_compile.text.tokenizer import Tokenizer

# PEFT's own use of names that transformers will drop; nothing of ours.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*past_key_values.*:FutureWarning"),
]

# Two rows of different lengths, padded on the right.
IDS = torch.tensor([[7, 31, 5, 99, 12, 64, 3], [44, 8, 150, 2, 0, 0, 0]])
LENGTHS = (7, 4)
MASK = torch.tensor([[1] * length + [0] * (7 - length) for length in LENGTHS])

VIRTUAL = 3
TASK = TaskConfig("tone", "<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}", VIRTUAL)


def model_of(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def entry_logits(base: Path, entry: TaskEntry) -> list[Tensor]:
    """What `transformers` computes for each row alone, with our prompt put in place."""
    model = model_of(base)
    logits = []
    for ids, length in zip(IDS, LENGTHS, strict=True):
        tokens = ids[None, :length]
        with torch.no_grad():
            if entry.prefix_kv is None:
                rows = torch.from_numpy(entry.rows.copy())[None]
                inputs = torch.cat([rows, model.get_input_embeddings()(tokens)], dim=1)
                logits.append(model(inputs_embeds=inputs).logits[0, len(entry.rows) :])
            else:
                cache = DynamicCache()
                for layer, (keys, values) in enumerate(torch.from_numpy(entry.prefix_kv.copy())):
                    cache.update(keys[None], values[None], layer)
                logits.append(model(tokens, cache=cache).logits[0])
    return logits


def peft_logits(model: Any, *, prefix: bool) -> list[Tensor]:
    """What PEFT computes for the rows as one batch, without its virtual positions."""
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=MASK).logits
    start = 0 if prefix else VIRTUAL
    return [row[start : start + length] for row, length in zip(logits, LENGTHS, strict=True)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert_close(one.numpy(), other.numpy(), relative=1e-5)


def prefix_entry(base: Path) -> TaskEntry:
    config = read_decoder_config(base)
    shape = (config.layers, 2, config.kv_heads, VIRTUAL, config.head_dim)
    prefix: NDArray[np.float32] = np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)
    rows = np.zeros((0, config.hidden), np.float32)
    return TaskEntry(TASK, rows, SequenceRules(None, 1), "prefix-tuning", prefix)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["rows", "prefix"])
def test_peft_computes_with_our_adapter_what_transformers_computes_with_our_prompt(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, kind: str
) -> None:
    base = tiny_bases[family]
    table = read_prompt_table(random_table(base, tmp_path / "table"))
    entry = prefix_entry(base) if kind == "prefix" else table.entry("tone")
    table = PromptTable(table.base, {"tone": entry})

    write_peft_adapter(table, "tone", tmp_path / "adapter", str(base))
    opened = peft.PeftModel.from_pretrained(model_of(base), str(tmp_path / "adapter"))

    assert_same(peft_logits(opened, prefix=kind == "prefix"), entry_logits(base, entry))


def peft_config(method: str) -> peft.PeftConfig:
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": VIRTUAL}
    configs: dict[str, peft.PeftConfig] = {
        "prompt-tuning": peft.PromptTuningConfig(**common),
        "p-tuning": peft.PromptEncoderConfig(**common, encoder_hidden_size=10),
        "p-tuning, lstm": peft.PromptEncoderConfig(
            **common, encoder_hidden_size=10, encoder_reparameterization_type="LSTM"
        ),
        "prefix-tuning": peft.PrefixTuningConfig(**common),
        "prefix-tuning, projected": peft.PrefixTuningConfig(
            **common, prefix_projection=True, encoder_hidden_size=10
        ),
    }
    return configs[method]


def trained_adapter(base: Path, method: str) -> Any:
    """A step of PEFT's training, so that nothing is as it was initialised."""
    torch.manual_seed(5)
    model = peft.get_peft_model(model_of(base), peft_config(method))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
    optimizer.step()
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "method",
    ["prompt-tuning", "p-tuning", "p-tuning, lstm", "prefix-tuning", "prefix-tuning, projected"],
)
def test_an_adapter_that_peft_trained_gives_the_same_logits_from_our_table(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, method: str
) -> None:
    base, output = tiny_bases[family], tmp_path / "table.safetensors"
    model = trained_adapter(base, method)
    model.save_pretrained(str(tmp_path / "adapter"))

    request = PeftImport(tmp_path / "adapter", output, "tone", "{sentence}:{label}")
    import_peft(request)  # the base is the one that the adapter names

    entry = read_prompt_table(output).entry("tone")
    prefix = method.startswith("prefix")
    assert (entry.prefix_kv is not None) == prefix
    assert entry.method == f"{method.partition(',')[0]} (PEFT)"
    assert entry.task.prompt_template == "<|VIRTUAL_PROMPT_0|>{sentence}:{label}"
    assert entry.task.whitespace == "transformers"
    assert_same(entry_logits(base, entry), peft_logits(model, prefix=prefix))


def test_an_adapter_comes_back_from_peft_as_it_went(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    base = tiny_bases["llama"]
    table = read_prompt_table(random_table(base, tmp_path / "table"))
    entry = replace(prefix_entry(base), task=replace(TASK, taskname="order"))
    table = table.without(["ask"]).with_entries({"order": entry})
    for name in table.entries:
        write_peft_adapter(table, name, tmp_path / name, str(base))
        opened = peft.PeftModel.from_pretrained(model_of(base), str(tmp_path / name))
        opened.save_pretrained(str(tmp_path / f"{name}-again"))
        request = PeftImport(tmp_path / f"{name}-again", tmp_path / "new", name, " {a}:{b}")
        import_peft(request)

    back = read_prompt_table(tmp_path / "new")

    assert back.base.fingerprint == table.base.fingerprint
    for name, entry in table.entries.items():
        assert back.entry(name).learned.tobytes() == np.ascontiguousarray(entry.learned).tobytes()


_TURNS: list[dict[str, Any]] = [{"content": "[INST]", "special": True}, {"content": "[/INST]"}]


@pytest.mark.parametrize("kind", ["byte level", "prepend", "first", "always"])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("<s>{question} Answer: {answer}", "{question} Answer:"),  # as docs/importing.md has it
        ("<s>Question: {question} {answer}", "Question: {question}"),
        ("<s>[INST]{question}[/INST] {answer}", "[INST]{question}[/INST]"),
        ("<s>[INST] {question} [/INST] {answer}", "[INST] {question} [/INST]"),
    ],
)
def test_an_imported_prompt_stands_before_the_tokens_that_transformers_gives(
    tmp_path: Path, tiny_bases: dict[str, Path], kind: str, template: str, text: str
) -> None:
    base = _base_with_bos(tmp_path / "base", kind, tiny_bases["gpt2"])
    table = read_prompt_table(random_table(base, tmp_path / "table"))
    write_peft_adapter(table, "tone", tmp_path / "adapter", str(base))
    theirs = AutoTokenizer.from_pretrained(str(base))
    question = "who was there"

    import_peft(PeftImport(tmp_path / "adapter", tmp_path / "new", "ask", template))

    entry = read_prompt_table(tmp_path / "new").entry("ask")
    prompt = ServedTask.of(entry, Tokenizer.from_folder(base)).renderer.prompt(
        {"question": question}
    )
    rows, ids = prompt.virtual_rows, prompt.token_ids
    assert rows[:VIRTUAL].tolist() == list(range(VIRTUAL))
    assert ids[VIRTUAL:].tolist() == theirs(text.format(question=question))["input_ids"]


def _base_with_bos(folder: Path, kind: str, byte_level: Path) -> Path:
    """A base whose tokenizer opens each text with `<s>`."""
    if kind != "byte level":
        spec = byte_fallback_tokenizer(cast(Any, kind), _TURNS)
        return write_tiny_base(folder, "llama", tokenizer=spec)
    file = HfTokenizer.from_file(str(byte_level / "tokenizer.json"))
    file.add_special_tokens(["<s>", *(token["content"] for token in _TURNS)])
    bos = [("<s>", file.token_to_id("<s>"))]
    file.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=bos)
    return write_tiny_base(folder, "llama", tokenizer=file.to_str())
