"""An answer ends where `transformers.generate` ends it, whichever file names the end tokens."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pl_compile.artifact.prompt_table import read_prompt_table
from pl_compile.driver.bring_in import PeftImport, import_peft
from pl_compile.families.registry import FAMILIES
from pl_compile.importers.peft import write_peft_adapter
from pl_compile.runtime import Request, Session
from pl_compile.testing import random_table
from pl_compile.text.render import SequenceRules
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.base_model import FrozenBase
from pl_compile.training.reference import TorchEngine

TEXT, STEPS = "the parcel is", 24


def base_that_ends(source: Path, folder: Path, **named: Any) -> Path:
    """A copy of a base whose config files name these end tokens, and no others."""
    shutil.copytree(source, folder)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["eos_token_id"] = named["config"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if "generation" in named:
        content = json.dumps({"eos_token_id": named["generation"]})
        (folder / "generation_config.json").write_text(content, encoding="utf-8")
    return folder


def imported(base: Path, work: Path, **options: Any) -> Any:
    """A task that came from PEFT, opened on the base; and its rows."""
    own = random_table(base, work / "own.safetensors")
    write_peft_adapter(read_prompt_table(own), "tone", work / "adapter", str(base))
    request = PeftImport(
        work / "adapter", work / "table.safetensors", "tone", "{text}:{answer}", **options
    )
    entry = import_peft(request).entry("tone")
    tokenizer = Tokenizer.from_folder(base)
    session = Session.of_entries(tokenizer, {"tone": entry}, TorchEngine(FrozenBase(base)))
    return session, entry


def generated(base: Path, entry: Any, **options: Any) -> list[int]:
    """What `transformers` alone writes after the rows and the text."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_folder(base)
    ids = [
        token
        for part in (TEXT, ":")
        for token in tokenizer.encode(part, opens=part == TEXT, markup=False)
    ]
    embedded = model.get_input_embeddings()(torch.tensor([ids]))
    inputs = torch.cat([torch.from_numpy(entry.rows.copy())[None], embedded], dim=1)
    with torch.no_grad():
        mask = torch.ones(inputs.shape[:2], dtype=torch.long)
        written = model.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=STEPS,
            pad_token_id=0,
            **options,
        )
    found: list[int] = written[0].tolist()
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["config", "generation"])
def test_any_of_several_end_tokens_ends_an_answer(
    tiny_bases: dict[str, Path], tmp_path: Path, family: str, where: str
) -> None:
    plain = base_that_ends(tiny_bases[family], tmp_path / "plain", config=None)
    (tmp_path / "a").mkdir()
    session, entry = imported(plain, tmp_path / "a")
    request = Request("tone", {"text": TEXT}, max_tokens=STEPS)
    whole = session.generate([request])[0]
    assert list(whole.token_ids) == generated(plain, entry)
    assert whole.finish_reason == "length"
    # The last token that comes for the first time, and one that never comes before it.
    second = list(dict.fromkeys(whole.token_ids))[-1]
    first = next(each for each in range(2, 300) if each not in whole.token_ids)
    named = {"config": first, where: [first, second]}
    base = base_that_ends(tiny_bases[family], tmp_path / "base", **named)

    (tmp_path / "b").mkdir()
    endless = session
    session, entry = imported(base, tmp_path / "b")
    result = session.generate([request])[0]

    assert (entry.rules.eos_id, entry.rules.end_ids) == (first, (second,))
    assert list(result.token_ids) == generated(base, entry)
    assert result.token_ids[-1] == second
    assert result.finish_reason == "stop"
    cut = replace(request, max_tokens=len(result.token_ids) - 1)
    assert result.text == endless.generate([cut])[0].text


def test_an_import_may_name_the_end_tokens(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    _, entry = imported(tiny_bases["llama"], tmp_path, end_tokens=["<|start|>", "a"])

    a = Tokenizer.from_folder(tiny_bases["llama"]).token_id("a")
    assert (entry.rules.eos_id, entry.rules.end_ids) == (0, (a,))


def test_no_end_token_comes_before_the_minimum(tiny_bases: dict[str, Path], tmp_path: Path) -> None:
    session, entry = imported(tiny_bases["llama"], tmp_path)
    request = Request("tone", {"text": TEXT}, max_tokens=STEPS)
    free = session.generate([request])[0].token_ids
    ends = tuple(dict.fromkeys(free[:2]))
    ended = Session.of_entries(
        session.tokenizer,
        {"tone": replace(entry, rules=SequenceRules(None, None, ends))},
        session.engine,
    )

    first, later = ended.generate([request, replace(request, min_tokens=6)])

    assert first.token_ids == free[:1]
    assert not set(later.token_ids[:6]) & set(ends)
    assert len(later.token_ids) >= 6


def test_a_choice_goes_on_over_a_token_that_ends_other_answers(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    session, entry = imported(tiny_bases["llama"], tmp_path, choices=("negative words",))
    request = Request("tone", {"text": TEXT})
    whole = session.generate([request])[0]
    inside = tuple(dict.fromkeys(whole.token_ids[:-1]))
    ended = Session.of_entries(
        session.tokenizer,
        {"tone": replace(entry, rules=replace(entry.rules, end_ids=inside))},
        session.engine,
    )

    assert whole.text == "negative words"
    assert ended.generate([request])[0] == whole
