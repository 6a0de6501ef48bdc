"""Mistakes are planted, and the comparison with torch and with transformers' tokenizer sees them.

The reference shares the rendered prompt with a bundle, and no more: not how ids stand for rows. And
the rendered prompt is itself compared with what transformers' tokenizer gives.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as HfTokenizer

from pl_compile.artifact.prompt_table import TaskEntry, read_prompt_table
from pl_compile.checks.parity import probe_rows
from pl_compile.cli.export import fixes_for_tokens, print_tokens
from pl_compile.config.task import TaskConfig
from pl_compile.driver.export import ExportResult, export_bundle
from pl_compile.driver.export_request import ExportRequest
from pl_compile.driver.verify import verify_bundle
from pl_compile.errors import DataError
from pl_compile.families.read import read_decoder_config
from pl_compile.families.registry import FAMILIES, smallest_window
from pl_compile.graph.operators import AttentionSettings
from pl_compile.graph.prompt import virtual_rows
from pl_compile.runtime.served_task import ServedTask
from pl_compile.testing import (
    byte_fallback_tokenizer,
    random_table,
    sign_bundle,
    write_tiny_base,
)
from pl_compile.text.render import Rendered, Renderer, SequenceRules
from pl_compile.text.tokenizer import Tokenizer
from pl_compile.training.compare_tokens import TokenCheck, compare_tokens, token_failures
from pl_compile.training.reference import TorchEngine
from pl_compile.training.reference_tokenizer import ReferenceTokenizer, _errors_of_transformers


@pytest.fixture
def exported(tiny_bases: dict[str, Path], tmp_path: Path) -> Callable[..., ExportResult]:
    def export(base: Path = tiny_bases["llama"], **changes: Any) -> ExportResult:
        table = tmp_path / "table.safetensors"
        if not table.is_file():
            random_table(base, table, prefix=True)
        request = ExportRequest(table, base, tmp_path / "bundle", target="onnx-cpu", **changes)
        return export_bundle(request)

    return export


@pytest.mark.parametrize("fold", ["always", "never"])
def test_ids_that_stand_for_the_wrong_rows(
    exported: Callable[..., ExportResult], monkeypatch: pytest.MonkeyPatch, fold: str
) -> None:
    def turned(self: Rendered, vocab: int) -> np.ndarray:
        last = self.virtual_rows.max(initial=0)
        return np.where(self.virtual_rows >= 0, vocab + last - self.virtual_rows, self.token_ids)

    monkeypatch.setattr(Rendered, "input_ids", turned)

    result = exported(fold=fold, tasks=("tone", "ask"))

    assert [parity.passed for parity in result.parity] == [False, False]


def test_a_graph_that_gathers_the_next_row(
    exported: Callable[..., ExportResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def off_by_one(g: Any, input_ids: Any, contract: Any, baked: Any) -> Any:
        return virtual_rows(g, input_ids, replace(contract, vocab=contract.vocab + 1), baked)

    monkeypatch.setattr("pl_compile.graph.decoder.virtual_rows", off_by_one)

    result = exported()

    # The third task's prompt is a prefix: no id stands for a row of it.
    assert [parity.passed for parity in result.parity] == [False, False, True]


def test_an_id_that_the_base_does_not_know_is_no_row_for_the_reference(
    tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    table = read_prompt_table(random_table(tiny_bases["llama"], tmp_path / "table.safetensors"))
    engine = TorchEngine(tiny_bases["llama"])
    tokenizer = Tokenizer.from_folder(tiny_bases["llama"])
    prompt = ServedTask.of(table.entry("tone"), tokenizer)
    beyond = Rendered(np.asarray([5, engine.vocab + 1]), np.asarray([-1, -1]), 2)

    with pytest.raises(DataError) as caught:
        engine.greedy(beyond, prompt, 1)

    assert f"token id {engine.vocab + 1}; expected ids below {engine.vocab}" in str(caught.value)


def test_words_that_the_base_does_not_know_are_no_probes(
    exported: Callable[..., ExportResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = Renderer.prompt

    def strict(self: Renderer, fields: Any, **limits: Any) -> Rendered:
        rendered = prompt(self, fields, **limits)
        if len(rendered) > len(prompt(self, dict.fromkeys(fields, ""))) + 5:
            raise DataError("rendering", found="a token that the base does not know")
        return rendered

    monkeypatch.setattr(Renderer, "prompt", strict)

    assert exported(tasks=("tone",)).verdict == "passed"


def test_tokens_are_compared_with_those_of_transformers(
    exported: Callable[..., ExportResult],
) -> None:
    result = exported()

    assert [check.task for check in result.tokens] == ["tone", "ask", "order"]
    assert all(check.compared == check.tokens > 40 for check in result.tokens)
    assert {check.why_not + check.difference for check in result.tokens} == {""}
    record = json.loads((result.bundle / "tasks" / "ask" / "parity.json").read_text("utf-8"))
    assert record["tokens"]["compared"] == record["tokens"]["tokens"]


def _as_markup(text: str, data: bool) -> tuple[str, bool]:
    return text, False


def _without_blanks(text: str, data: bool) -> tuple[str, bool]:
    return text.lstrip(" "), data


def _in_ascii(text: str, data: bool) -> tuple[str, bool]:
    return text.encode("ascii", "replace").decode(), data


@pytest.mark.parametrize("mistake", [_as_markup, _without_blanks, _in_ascii])
def test_a_prompt_that_is_rendered_otherwise(
    exported: Callable[..., ExportResult],
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[str, bool], tuple[str, bool]],
) -> None:
    encode = Tokenizer.encode

    def planted(self: Tokenizer, text: str, *, opens: bool, markup: bool) -> list[int]:
        text, is_data = mistake(text, not markup)
        return encode(self, text, opens=opens, markup=not is_data)

    monkeypatch.setattr(Tokenizer, "encode", planted)

    result = exported(tasks=("ask",))

    assert result.verdict == "failed"
    # Both sides of the other comparison are given the same wrong prompt: it sees nothing.
    assert [parity.passed for parity in result.parity] == [True]
    assert "task 'ask': the text " in result.failures[0]
    assert "where transformers " in result.failures[0]


def test_a_tokenizer_that_is_not_the_base_s(
    exported: Callable[..., ExportResult], tiny_bases: dict[str, Path]
) -> None:
    bundle = exported().bundle
    spec = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = spec["model"]["vocab"]
    vocab["Ġ"], vocab["0"] = vocab["0"], vocab["Ġ"]  # in no template and in no label
    (bundle / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    sign_bundle(bundle)

    result = verify_bundle(bundle, tiny_bases["llama"])

    assert not result.passed
    assert all(parity.passed for parity in result.parity)
    assert f"[{vocab['Ġ']}, " in "".join(check.difference for check in result.tokens)


@pytest.mark.parametrize(
    "config",
    [
        "{",
        "[]",
        json.dumps({"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}),
        json.dumps({"tokenizer_class": "CTRLTokenizer"}),
    ],
    ids=["no JSON", "no object", "code of its own", "no fast tokenizer"],
)
def test_a_base_without_a_tokenizer_for_transformers_is_compared_all_the_same(
    exported: Callable[..., ExportResult], tmp_path: Path, config: str
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama")
    random_table(base, tmp_path / "table.safetensors", prefix=True)
    (base / "tokenizer_config.json").write_text(config, encoding="utf-8")

    result = exported(base, tasks=("tone",))

    assert result.verdict == "passed"
    (check,) = result.tokens
    assert check.compared == 0
    assert check.why_not.startswith("transformers makes no tokenizer of the base (")
    assert "\n" not in check.why_not


def _write_sentencepiece_like(folder: Path, style: str) -> None:
    """A tokenizer that puts a blank before whatever it is given, in the place of a base's."""
    tokenizer = HfTokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = [AddedToken("<unk>", special=True), AddedToken("</s>", special=True)]
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(
        ["the parcel in a place: sentiment becomes Q who was it"], trainer
    )
    tokenizer.decoder = decoders.Metaspace()
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=style, split=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def _token_check(base: Path, template: str, bos_id: int | None = 0, **changes: Any) -> TokenCheck:
    """Of a task with this template."""
    task = TaskConfig("task", template, 3, **changes)
    entry = TaskEntry(task, np.zeros((3, 24), np.float32), SequenceRules(bos_id), "random")
    tokenizer = Tokenizer.from_folder(base)
    prompts = {"task": ServedTask.of(entry, tokenizer)}
    rows = probe_rows(prompts, tokenizer, vocab=397, capacity=96)
    (check,) = compare_tokens(rows, base)
    return check


_TEMPLATES = (
    "<|VIRTUAL_PROMPT_0|> {sentence} sentiment:{label}",
    "Q: {question} <|VIRTUAL_PROMPT_0|> in {place}: {answer}",
    " the  {question}{place}the <|VIRTUAL_PROMPT_0|>{answer}",
    "{question} \n\n{question}<|VIRTUAL_PROMPT_0|>\tA {question}  {answer}",
)


@pytest.mark.parametrize("whitespace", ["keep", "nemo"])
@pytest.mark.parametrize("style", ["byte level", "always", "first", "prepend"])
def test_every_token_of_a_prompt_is_compared(tmp_path: Path, style: str, whitespace: str) -> None:
    base = write_tiny_base(tmp_path / "base", "llama")
    if style != "byte level":
        _write_sentencepiece_like(base, style)

    checks = [_token_check(base, template, whitespace=whitespace) for template in _TEMPLATES]

    assert {check.difference + check.why_not for check in checks} == {""}
    assert all(check.compared == check.tokens for check in checks)


@pytest.mark.parametrize(
    ("template", "unknown"),
    [
        ("the </s>{sentence}<|VIRTUAL_PROMPT_0|>{label}", ""),
        ("the {sentence}</s> so:<|VIRTUAL_PROMPT_0|>{label}", "the text ' </s> so:'"),
    ],
)
def test_what_transformers_cannot_say_is_left_out_and_said(
    tmp_path: Path, template: str, unknown: str
) -> None:
    """Each kind of tokenizer that adds blanks has its own rule for one after an added token."""
    base = write_tiny_base(tmp_path / "base", "llama")
    _write_sentencepiece_like(base, "prepend")

    check = _token_check(base, template)

    assert not check.difference
    assert 0 < check.compared < check.tokens
    assert f"cannot say what {unknown}" in check.why_not


_CONTROL: list[dict[str, Any]] = [
    {"content": "[INST]", "special": True},
    {"content": "[/INST]"},
    {"content": "<|user|>", "special": True, "rstrip": True},
]
# As adapters of other libraries are imported: BOS stands in the template, after the rows.
_IMPORTED = (
    "<|VIRTUAL_PROMPT_0|><s>{question} {answer}",
    "<|VIRTUAL_PROMPT_0|><s>{question} Answer: {answer}",
    "<|VIRTUAL_PROMPT_0|><s>[INST] {question} [/INST]{answer}",
    "<|VIRTUAL_PROMPT_0|><s><|user|> {question} [/INST] {answer}",
    "[INST]{question}[/INST] so <|VIRTUAL_PROMPT_0|>{answer}",
)


def _write_tokenizer_with_bos(folder: Path, kind: str) -> Path:
    """A tokenizer that opens a text with "<s>", alone in its folder."""
    if kind == "byte level":
        write_tiny_base(folder, "llama")
        path = folder / "tokenizer.json"
        file = HfTokenizer.from_file(str(path))
        file.add_tokens([AddedToken("<s>", special=True)])
        file.add_tokens([AddedToken(**token) for token in _CONTROL])
        bos = file.token_to_id("<s>")
        file.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", bos)])
        file.save(str(path))
        return folder
    folder.mkdir()
    text = byte_fallback_tokenizer(cast(Any, kind), _CONTROL)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("kind", ["byte level", "prepend", "first", "always"])
def test_text_that_is_tokenised_as_one_whole_is_compared_as_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    base = _write_tokenizer_with_bos(tmp_path / "base", kind)
    settings: dict[str, Any] = {"bos_id": None, "whitespace": "transformers"}

    checks = [_token_check(base, template, **settings) for template in _IMPORTED]

    assert {check.difference for check in checks} == {""}
    for check in checks:
        # The rest: rows whose fields hold what transformers takes for an added token.
        assert check.tokens / 4 < check.compared < check.tokens, check
        assert "cannot say what" in check.why_not

    encode = Tokenizer.encode

    def joined(self: Tokenizer, text: str, *, opens: bool, markup: bool) -> list[int]:
        return encode(self, text, opens=False, markup=markup)[1:]

    monkeypatch.setattr(Tokenizer, "encode", joined)
    checks = [_token_check(base, template, **settings) for template in _IMPORTED]
    assert all("is rendered to tokens" in check.difference for check in checks)


def _write_byte_level(folder: Path, *, joins_words: bool, strips: bool) -> Path:
    """A base with a byte-level tokenizer that has tokens for several line ends."""
    base = write_tiny_base(folder, "llama")
    tokenizer = HfTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(False, use_regex=not joins_words)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["so fox so\n\n\nand so two and so 1984 and"] * 3, trainer)
    if strips:
        tokenizer.normalizer = normalizers.Strip()
    tokenizer.save(str(base / "tokenizer.json"))
    return base


@pytest.mark.parametrize(
    ("settings", "template", "least"),
    [
        ({"joins_words": True, "strips": False}, "so {q} so {a}", 3),
        ({"joins_words": False, "strips": True}, "so {q} so {a}", 9),
        # A field that ends in a line end touches another one.
        ({"joins_words": False, "strips": False}, "so {q}\n\nand {a}", 1),
    ],
    ids=["joins words", "strips", "line ends"],
)
def test_prompts_that_transformers_cuts_elsewhere_are_counted_and_said(
    tmp_path: Path, settings: dict[str, bool], template: str, least: int
) -> None:
    base = _write_byte_level(tmp_path / "base", **settings)
    template = f"<|VIRTUAL_PROMPT_0|>{template}"

    check = _token_check(base, template, None, whitespace="transformers")

    assert not check.difference
    assert least <= check.otherwise <= check.prompts
    assert check.compared < check.tokens
    assert check.note.startswith(f"{check.otherwise} of {check.prompts} prompts have other tokens")


def test_a_task_of_ordinary_words_has_the_tokens_of_transformers(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base", "llama")
    template = "<|VIRTUAL_PROMPT_0|>the {q} and {a}"

    check = _token_check(base, template, None, whitespace="transformers")

    assert (check.otherwise, check.note, check.difference) == (0, "", "")
    assert check.compared == check.tokens


def _with_names_of_its_own(base: Path) -> None:
    """The base's other files name a token that `tokenizer.json` lacks."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "extra_special_tokens": ["<|im_start|>"],
    }
    (base / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _with_tokens_of_a_file(base: Path) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (base / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (base / "added_tokens.json").write_text(json.dumps({"<|im_start|>": 397}), encoding="utf-8")


def _with_a_class_that_puts_blanks(base: Path) -> None:
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    (base / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    "edit", [_with_names_of_its_own, _with_tokens_of_a_file, _with_a_class_that_puts_blanks]
)
def test_a_base_whose_files_do_not_agree(
    tmp_path: Path, edit: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama")
    edit(base)
    template = "<|im_start|>the {q}<|VIRTUAL_PROMPT_0|> {a}"

    trained = _token_check(base, template)
    imported = _token_check(base, template, None, whitespace="transformers")

    # What was trained here has the tokens of tokenizer.json, and is served with them.
    assert not trained.difference
    assert trained.other_tokenizer
    assert trained.compared > trained.tokens / 2
    assert "makes another tokenizer of the base's files than tokenizer.json" in trained.note
    print_tokens([trained])
    assert trained.note in capsys.readouterr().out
    assert fixes_for_tokens([trained], base) == []
    # What transformers trained does not.
    assert imported.other_tokenizer
    assert "makes another tokenizer of the base's files" in imported.difference
    [fix] = fixes_for_tokens([imported], base)
    assert f"AutoTokenizer.from_pretrained('{base}').save_pretrained('{base}')" in fix


def test_a_prompt_that_transformers_fails_at_hides_no_difference(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_bases["llama"]
    tokenizer = Tokenizer.from_folder(base)
    prompts = {
        name: ServedTask.of(
            TaskEntry(
                TaskConfig(name, template, 3), np.zeros((3, 24), np.float32), SequenceRules(0), ""
            ),
            tokenizer,
        )
        for name, template in (("differs", _TEMPLATES[0]), ("fails", _TEMPLATES[1]))
    }
    rows = probe_rows(prompts, tokenizer, vocab=397, capacity=96)
    wrong = [
        replace(row, rendered=row.rendered.after(2)) if row.task == "differs" else row
        for row in rows
    ]
    words = ReferenceTokenizer._words

    def failing(self: ReferenceTokenizer, text: str) -> list[str]:
        if "in" in text:
            with _errors_of_transformers("tokenising"):
                raise IndexError("list index out of range")
        return words(self, text)

    monkeypatch.setattr(ReferenceTokenizer, "_words", failing)

    differs, fails = compare_tokens(wrong, base)

    assert "BOS is rendered to tokens" in differs.difference
    assert (fails.compared, fails.difference) == (0, "")
    assert fails.why_not.endswith("fails at a prompt (IndexError: list index out of range)")
    assert token_failures([differs, fails]) != []


def test_tokens_that_were_not_compared_are_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_tokens([TokenCheck("a", 40, 0, "it fails", ""), TokenCheck("b", 40, 30, "it fails", "")])

    none, some = capsys.readouterr().out.splitlines()
    assert none.endswith("'a': NOT COMPARED with transformers, none of 40; it fails")
    assert some.endswith("'b': 30 of 40 as in transformers; it fails")


def test_a_mistake_of_ours_is_no_error_of_transformers(
    tiny_bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*arguments: Any, **options: Any) -> list[Any]:
        raise IndexError("list index out of range")

    monkeypatch.setattr(ReferenceTokenizer, "_ids", mistaken)

    with pytest.raises(IndexError):
        _token_check(tiny_bases["llama"], _TEMPLATES[0])


def test_a_text_of_which_nothing_is_left_is_no_token(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base", "llama")
    _write_sentencepiece_like(base, "always")
    path = base / "tokenizer.json"
    file = HfTokenizer.from_file(str(path))
    file.normalizer = normalizers.Replace("~", "")
    file.save(str(path))

    check = _token_check(
        base,
        "Q:{question}<|VIRTUAL_PROMPT_0|>~<|VIRTUAL_PROMPT_1|>so:{answer}",
        virtual_token_splits=(2, 1),
    )

    assert check.difference + check.why_not == ""
    assert check.compared == check.tokens


def test_a_blank_that_is_put_before_text_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_tiny_base(tmp_path / "base", "llama")
    _write_sentencepiece_like(base, "prepend")
    encode = Tokenizer.encode

    def opening(self: Tokenizer, text: str, *, opens: bool, markup: bool) -> list[int]:
        return encode(self, text, opens=True, markup=markup)

    monkeypatch.setattr(Tokenizer, "encode", opening)

    assert "is rendered to tokens" in _token_check(base, _TEMPLATES[1]).difference


def test_probes_hold_what_is_easily_got_wrong(tiny_bases: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_folder(tiny_bases["llama"])
    entry = TaskEntry(
        TaskConfig("task", _TEMPLATES[1], 3), np.zeros((3, 24), np.float32), SequenceRules(0), ""
    )
    prompts = {"task": ServedTask.of(entry, tokenizer)}

    rows = probe_rows(prompts, tokenizer, vocab=397, capacity=96)

    assert tokenizer.added_texts == ["<|start|>", "<|end|>"]
    for name in ("question", "place"):
        texts = [row.fields[name] for row in rows]
        assert any(text.startswith(" ") and text.endswith(" ") for text in texts)
        assert any("<|start|>" in text or "<|end|>" in text for text in texts)
        assert any("é" in text and "😀" in text for text in texts)
        assert any(text == text.strip(" ") for text in texts)
    ids = np.concatenate([row.rendered.token_ids for row in rows])
    assert ids.max() > 380


@pytest.fixture
def with_window(tmp_path: Path) -> Path:
    """A Gemma 3 whose layers with a window see 60 tokens."""
    base = write_tiny_base(tmp_path / "gemma3", "gemma3_text")
    config = json.loads((base / "config.json").read_text())
    config |= {"sliding_window": 60, "max_position_embeddings": 200}
    (base / "config.json").write_text(json.dumps(config))
    return base


def test_a_window_that_the_graph_leaves_out(
    exported: Callable[..., ExportResult], monkeypatch: pytest.MonkeyPatch, with_window: Path
) -> None:
    right = exported(with_window, capacity=120)

    assert right.verdict == "passed"
    assert verify_bundle(right.bundle, with_window).not_compared == ()

    def without_window(*given: Any, **settings: Any) -> AttentionSettings:
        return replace(AttentionSettings(*given, **settings), window=0)

    monkeypatch.setattr("pl_compile.graph.blocks.AttentionSettings", without_window)

    wrong = exported(with_window, capacity=120)

    assert [parity.passed for parity in wrong.parity] == [False, False, False]


def test_a_window_that_no_prompt_reaches_is_said_so(
    exported: Callable[..., ExportResult],
    with_window: Path,
    plc: Callable[..., tuple[int, str, str]],
) -> None:
    bundle = exported(with_window, capacity=90, tasks=("tone",)).bundle

    said = "task 'tone': the base's window of 60 tokens was not compared"
    report = json.loads((bundle / "report.json").read_text())
    assert [said in each for each in report["checks"]["not_compared"]] == [True]
    assert said in unescape((bundle / "report.html").read_text(encoding="utf-8"))
    code, out, _ = plc("verify", bundle, "--reference", with_window)
    assert (code, said in out) == (0, True)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_smallest_window_is_that_of_the_definition(
    tiny_bases: dict[str, Path], family: str
) -> None:
    config = read_decoder_config(tiny_bases[family])

    assert smallest_window(config) == (5 if family == "gemma3_text" else 0)
