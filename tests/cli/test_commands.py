"""The commands as a user meets them: exit codes, messages, JSON."""

import errno
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pl_compile.checks import parity
from pl_compile.cli.main import COMMANDS
from pl_compile.config.targets import PLAN_TARGETS
from pl_compile.runtime import Request, Session
from pl_compile.runtime.kernels import instruction_set
from pl_compile.runtime.requests import with_options
from pl_compile.testing import (
    sign_bundle,
    tiny_examples,
    tiny_train_config,
    write_jsonl,
)


def test_train_export_verify_generate_eval_inspect_in_a_row(
    plc: Any, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = tiny_train_config(tmp_path, tiny_bases["llama"])
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    code, out, err = plc("train", "tiny.yaml", "--set", "trainer.max_steps=2")

    assert code == 0
    assert "loss, no prompt" in out
    assert "trained: 192 numbers (prompt-tuning)" in err
    assert "frozen:" in err
    assert (tmp_path / "runs/tiny/prompts.safetensors").is_file()

    # Nothing but the task is named: the newest run's table and base, into ./bundle.
    code, out, _ = plc("export", "--task", "tone", "--task", "ask")

    assert code == 0
    assert "wrote bundle: tone, ask" in out
    assert "parity passed" in out

    code, out, _ = plc("verify", "bundle", "--reference", tiny_bases["llama"], "--json")

    assert code == 0
    assert json.loads(out)["passed"] is True

    code, out, _ = plc("generate", "bundle", "--task", "tone", "--field", "sentence=so cold")

    assert code == 0
    assert out.strip() in ("positive", "negative", "neutral")

    code, _, _ = plc(
        "generate", "bundle", "--input", "validation.jsonl", "--output", "answers.jsonl"
    )
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]

    assert code == 0
    assert [answer["index"] for answer in answers] == list(range(8))
    assert {answer["taskname"] for answer in answers} == {"tone", "ask"}
    assert all("expected" in answer for answer in answers)

    code, out, _ = plc(
        "eval", "bundle", "--data", "validation.jsonl", "--reference", tiny_bases["llama"], "--json"
    )
    scores = {score["task"]: score for score in json.loads(out)["tasks"]}

    assert code == 0
    assert scores["tone"]["metric"] == "accuracy"
    assert scores["ask"]["metric"] == "squad"
    assert scores["tone"]["same_as_reference"] == scores["ask"]["same_as_reference"] == 100.0

    code, out, _ = plc("eval", "runs/tiny/prompts.safetensors", "--data", "validation.jsonl")

    assert code == 0
    assert "no prompt" in out

    for path, kind in (
        ("bundle", "bundle"),
        ("runs/tiny", "run"),
        ("runs/tiny/prompts.safetensors", "prompt table"),
        ("runs/tiny/checkpoints/last.safetensors", "checkpoint"),
        (tiny_bases["gpt2"], "base"),
    ):
        code, out, _ = plc("inspect", path, "--json")

        assert (code, json.loads(out)["kind"]) == (0, kind)


def test_an_error_is_one_line_on_standard_error_with_exit_code_1(plc: Any, work: Path) -> None:
    code, out, err = plc("generate", work / "bundle", "--task", "tome", "--field", "sentence=x")

    assert (code, out) == (1, "")
    assert err == (
        "error: serving request 0: task 'tome' does not exist. "
        "Did you mean 'tone'? Known tasks: tone, ask.\n"
    )


def test_a_file_of_requests_that_is_not_there_is_named(
    plc: Any, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "answers.jsonl").touch()

    code, out, err = plc(
        "generate", work / "bundle", "--input", "none.jsonl", "--output", "answers.jsonl"
    )

    assert (code, out) == (1, "")
    assert "reading none.jsonl: none.jsonl: No such file or directory" in err


@pytest.mark.parametrize("command", ["generate --input", "eval --data"])
def test_requests_that_are_no_json_are_refused_with_their_line(
    plc: Any, work: Path, tmp_path: Path, command: str
) -> None:
    name, option = command.split()
    (tmp_path / "a.jsonl").write_text('\n{"taskname": "tone", "sentence": NaN}\n')

    code, out, err = plc(name, work / "bundle", option, "a.jsonl")

    assert (code, out) == (1, "")
    assert "reading a.jsonl: a.jsonl:2: not JSON (NaN is not JSON" in err


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_request_that_is_cut_to_fit_is_said(plc: Any, work: Path, form: list[str]) -> None:
    request = ("generate", work / "bundle", "--task", "ask", "--field", "place=town")

    code, out, err = plc(*request, "--field", f"question={'who ' * 2000}", *form)

    assert code == 0
    assert re.search(r"field 'question' was cut by \d+ tokens to fit the bundle's \d+ tokens", err)
    assert "was cut by" not in out

    assert "was cut by" not in plc(*request, "--field", "question=who?", *form)[2]


def test_a_stop_text_that_holds_a_backslash_is_said(plc: Any, work: Path) -> None:
    code, _, err = plc(
        *("generate", work / "bundle", "--task", "tone", "--field", "sentence=x"),
        *("--stop", r"\n", "--stop", "end"),
    )

    assert code == 0
    assert err.count(r"holds \n as a backslash and the letter n") == 1


def test_debug_shows_a_traceback(plc: Any) -> None:
    code, _, err = plc("--debug", "inspect", "nothing-here")

    assert code == 1
    assert "Traceback" in err


def test_misuse_is_exit_code_2(plc: Any) -> None:
    assert plc("generate", "bundle")[0] == 2
    assert plc("generate", "bundle", "--task", "t", "--field", "no equals sign")[0] == 2
    assert plc("no-such-command")[0] == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--temperature inf", "temperature inf, expected a finite number, 0 or more"),
        ("--top-p 2", "2.0 is not in the range 0<x<=1"),
        ("--min-p nan", "min_p nan, expected a number from 0 to 1"),
        ("--logit-bias yes=500", "expected numbers from -100 to 100 by the texts of tokens"),
        ("--logit-bias yes", "--logit-bias yes: expected TEXT=NUMBER, -100 to 100"),
    ],
)
def test_numbers_for_sampling_beyond_their_range_are_misuse(
    plc: Any, work: Path, option: str, said: str
) -> None:
    request = ["--task", "tone", "--field", "sentence=fine"]

    code, out, err = plc("generate", str(work / "bundle"), *request, *option.split())

    assert (code, out) == (2, "")
    assert said in err


def test_numbers_that_greedy_answers_do_not_use_are_said(plc: Any, work: Path) -> None:
    request = ["--task", "tone", "--field", "sentence=fine"]

    code, _, err = plc("generate", str(work / "bundle"), *request, "--min-p", "0.5", "--top-k", "3")

    assert code == 0
    assert "--min-p, --top-k: no effect at --temperature 0" in err


def test_what_is_not_there_is_not_called_a_bundle_without_a_manifest(plc: Any, work: Path) -> None:
    request = ["--task", "tone", "--field", "sentence=fine"]

    assert "nowhere: there is no such folder" in plc("generate", "nowhere", *request)[2]
    assert "no manifest.json" in plc("generate", str(work), *request)[2]


def test_a_dry_run_dumps_no_passes(plc: Any, work: Path) -> None:
    code, _, err = export(plc, work, "--dry-run", "--dump-passes", str(work / "dumps"))

    assert code == 2
    assert "--dump-passes and --dry-run: a dry run builds no graph" in err


def test_a_file_of_a_bundle_names_the_bundle(plc: Any, work: Path) -> None:
    code, _, err = plc("inspect", work / "bundle/base/model.onnx")

    assert code == 1
    assert "not safetensors: such a file begins with a length" in err
    assert err.endswith(f"Look into the whole bundle: plc inspect {work / 'bundle'}\n")


def test_a_fetched_base_is_looked_into_by_its_name(
    plc: Any, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLC_CACHE", str(tmp_path / "cache"))
    shutil.copytree(work / "base", tmp_path / "cache/bases/mine")

    code, out, _ = plc("inspect", "mine", "--json")

    assert (code, json.loads(out)["kind"]) == (0, "base")
    assert "no such file, folder or base" in plc("inspect", "yours")[2]


def test_a_bundle_without_self_tests_passes_none(plc: Any, work: Path) -> None:
    plc(
        *("export", "--prompts", work / "table.safetensors", "--base", work / "base"),
        *("--output", "bare", "--no-parity"),
    )

    code, out, err = plc("verify", "bare")

    assert code == 0
    assert "it holds no self-tests: it was exported without parity" in out
    assert "self-tests" not in err


def test_failed_parity_is_exit_code_3_and_leaves_a_marked_bundle(
    plc: Any, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.LIMITS, "none", parity.Limit(1e-12, 1.0))

    code, out, err = plc(
        "export",
        *("--prompts", work / "table.safetensors", "--base", work / "base", "--output", "b"),
    )

    assert code == 3
    assert "FAILED" in out
    assert "allowed are 1e-12 and 100% of the tokens" in err
    assert "The bundle is marked as failed; report.html says more." in err
    assert json.loads((tmp_path / "b/manifest.json").read_text())["parity"] == "failed"


def test_an_altered_bundle_is_refused_by_every_reader(plc: Any, work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "bundle", tmp_path / "bundle")
    data = tmp_path / "bundle/base/model.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)

    for command in (
        ("verify", "bundle"),
        ("inspect", "bundle"),
        ("generate", "bundle", "--task", "tone", "--field", "sentence=x"),
    ):
        code, _, err = plc(*command)

        assert code == 1
        assert "base/model.onnx.data has sha256" in err


def test_a_bundle_for_another_base_is_refused_with_both_fingerprints(
    plc: Any, work: Path, tiny_bases: dict[str, Path]
) -> None:
    code, _, err = plc(
        "export", "--prompts", work / "table.safetensors", "--base", tiny_bases["gpt2"]
    )

    assert code == 1
    assert len([word for word in err.replace(";", " ").split() if len(word) == 64]) == 2


def test_a_full_disk_leaves_the_old_bundle(
    plc: Any, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("export", "--prompts", work / "table.safetensors", "--base", work / "base")
    plc(*arguments, "--no-parity")
    before = (tmp_path / "bundle/manifest.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pl_compile.exporters.onnx.files.ir.save", full)
    code, _, err = plc(*arguments)

    assert code == 1
    assert err.endswith(
        "error: writing bundle: No space left on device. "
        "Nothing was left under that name that was not there before.\n"
    )
    assert (tmp_path / "bundle/manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_export_will_not_replace_a_folder_that_is_no_bundle(
    plc: Any, work: Path, tmp_path: Path
) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("years of work")

    code, _, err = plc(
        "export",
        *("--prompts", work / "table.safetensors", "--base", work / "base"),
        *("--output", "precious"),
    )

    assert code == 1
    assert "a folder with other things in it" in err
    assert (tmp_path / "precious/thesis.txt").is_file()


@pytest.mark.parametrize("capacity", ["5", "97"])
def test_a_capacity_that_cannot_be_is_refused(plc: Any, work: Path, capacity: str) -> None:
    code, _, err = plc(
        "export",
        *("--prompts", work / "table.safetensors", "--base", work / "base"),
        *("--capacity", capacity),
    )

    assert code == 1
    assert f"capacity {capacity}; expected 7 (virtual tokens, a token, an answer) to 96" in err


def test_export_without_a_run_says_what_to_name(plc: Any) -> None:
    code, _, err = plc("export", "--task", "squad")

    assert code == 1
    assert "no runs/*/prompts.safetensors. Name the prompt table with --prompts" in err


def test_a_missing_base_says_how_to_get_one(plc: Any, work: Path) -> None:
    code, _, err = plc("verify", work / "bundle", "--reference", "smol")

    assert code == 1
    assert "no such folder, and nothing fetched under that name. Run: plc fetch" in err


def test_a_config_with_mistakes_names_all_of_them(plc: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(
        "base: b\ntrainer: {max_step: 3, max_steps: many}\ndata: {train: [x]}\n"
        "tasks:\n  - taskname: t\n    prompt_template: '<|VIRTUAL_PROMPT_0|> {x} {y}'\n"
        "    total_virtual_tokens: 4\n    virtual_token_splits: [3]\n"
    )

    code, _, err = plc("train", "bad.yaml")

    assert code == 1
    assert "bad.yaml:2: unknown key 'trainer.max_step'. Did you mean 'max_steps'?" in err
    assert "bad.yaml:2: 'trainer.max_steps' is 'many', expected a whole number" in err


def test_splits_that_do_not_sum_are_named_before_anything_is_loaded(
    plc: Any, tmp_path: Path
) -> None:
    (tmp_path / "bad.yaml").write_text(
        "base: nowhere\ntrainer: {max_steps: 3}\ndata: {train: [x]}\n"
        "tasks:\n  - taskname: t\n    prompt_template: '<|VIRTUAL_PROMPT_0|> {x} {y}'\n"
        "    total_virtual_tokens: 4\n    virtual_token_splits: [3]\n"
    )

    code, _, err = plc("train", "bad.yaml")

    assert code == 1
    assert "virtual_token_splits [3] sum to 3, but total_virtual_tokens is 4" in err


def test_doctor_says_what_is_missing_and_how_to_get_it(plc: Any) -> None:
    code, out, _ = plc("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(out)["findings"]}

    assert code == 0
    assert findings["onnxruntime"]["works"] is True
    assert "CPUExecutionProvider" in findings["ONNX Runtime providers"]["detail"]
    assert set(findings) >= {"extra [train]", "extra [export]", "extra [gpu]", "NVIDIA GPU"}
    targets = ("onnx-cuda: run", *(f"{t}: {w}" for t in PLAN_TARGETS for w in ("build", "run")))
    assert set(findings) >= {f"target {target}" for target in targets}
    assert set(findings) >= {"ranks on CPU", "ranks on GPUs"}
    for finding in findings.values():
        assert finding["detail"], finding


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(plc: Any, command: str) -> None:
    code, out, _ = plc(command, "--help")

    assert code == 0
    assert "Example" in out or command == "prepare"


def test_a_failed_verification_does_not_claim_to_have_marked_the_bundle(
    plc: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(parity.SELF_LIMITS, "none", parity.Limit(1e-12, 1.0))

    code, _, err = plc("verify", work / "bundle")

    assert code == 3
    assert "marked" not in err
    assert "Do not serve it" in err
    assert "tokenizer" not in err


def test_a_bundle_with_another_tokenizer_than_its_base_is_exit_code_3(
    plc: Any, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(work / "bundle", tmp_path / "bundle")
    spec = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = spec["model"]["vocab"]
    vocab["Ġ"], vocab["0"] = vocab["0"], vocab["Ġ"]
    (bundle / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    sign_bundle(bundle)

    code, out, err = plc("verify", "bundle", "--reference", work / "base")

    assert code == 3
    assert "tokens of task 'ask': the text " in out
    assert "is rendered to tokens [" in err
    assert "Where tokens differ, the bundle's tokenizer is not the base's tokenizer.json." in err

    # Numbers that fail too are told beside it.
    monkeypatch.setitem(parity.SELF_LIMITS, "none", parity.Limit(1e-12, 1.0))
    code, _, err = plc("verify", "bundle", "--reference", work / "base")
    assert code == 3
    assert "is rendered to tokens [" in err
    assert "differs from self-test vectors by" in err


def test_requests_are_not_overwritten_by_their_answers(
    plc: Any, work: Path, tmp_path: Path
) -> None:
    requests = tmp_path / "r.jsonl"
    requests.write_text('{"taskname": "tone", "sentence": "cold"}\n')

    code, _, err = plc("generate", work / "bundle", "--input", requests, "--output", "r.jsonl")

    assert code == 2
    assert "the requests would be lost" in err
    assert "sentence" in requests.read_text()


def test_a_full_output_device_is_one_line(work: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pl_compile.cli", "inspect", str(work / "bundle")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "error: writing the output: No space left on device.\n"


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 128 + 15), ("SIGHUP", 128 + 1), ("SIGINT", 130)]
)
def test_an_export_that_is_told_to_end_leaves_nothing(
    work: Path, tmp_path: Path, name: str, code: int
) -> None:
    program = (
        "import os, signal, sys\n"
        # Tests may be run by nohup, or in the background of a script, which ignores SIGINT.
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import pl_compile.driver.write_bundle as bundle\n"
        f"bundle.write_task = lambda *_: os.kill(os.getpid(), signal.{name})\n"
        "from pl_compile.cli.main import main\n"
        "main()\n"
    )
    arguments: list[str | Path] = ["export", "--prompts", work / "table.safetensors"]
    arguments += ["--base", work / "base"]

    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, check=False)

    assert done.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_an_export_goes_on_after_its_terminal_is_gone_where_nohup_started_it(
    plc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int, Any] = {signal.SIGHUP: signal.SIG_IGN}
    monkeypatch.setattr(signal, "getsignal", lambda number: found.get(number, signal.SIG_DFL))
    monkeypatch.setattr(signal, "signal", found.__setitem__)

    plc("doctor", "--help")

    assert found[signal.SIGHUP] == signal.SIG_IGN
    assert callable(found[signal.SIGTERM])


def test_a_warning_is_a_line_without_a_place_in_the_code(tmp_path: Path) -> None:
    program = (
        "import warnings\n"
        "import pl_compile.driver.describe as describe\n"
        "describe.describe = lambda path: warnings.warn('it is slow', RuntimeWarning)\n"
        "from pl_compile.cli.main import main\n"
        "main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "inspect", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stderr == "warning: it is slow\n"


def test_a_file_that_cannot_be_read_is_no_fault_of_the_output(
    plc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", denied)

    code, _, err = plc("inspect", tmp_path / "secret")

    assert (code, err) == (
        1,
        f"error: opening {tmp_path / 'secret'}: Permission denied. "
        "Check the path, and who may read and write there.\n",
    )


def test_a_bundle_for_an_unknown_target_is_refused(plc: Any, work: Path) -> None:
    shutil.copytree(work / "bundle", "copy")
    manifest = Path("copy/manifest.json")
    text = manifest.read_text(encoding="utf-8")
    manifest.write_text(text.replace('"onnx-cpu"', '"onnx-tpu"'), encoding="utf-8")

    for command in (["verify", "copy"], ["generate", "copy", "--task", "tone"]):
        code, _, err = plc(*command)
        assert code == 1
        assert err.endswith("Export it again with one of these as --target.\n")
        assert "found" not in err
        assert "opening the bundle copy: target 'onnx-tpu'; expected 'onnx-cpu' or" in err


def test_two_processes_do_not_train_in_one_folder(
    plc: Any, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    import fcntl
    import os

    config = tiny_train_config(tmp_path, tiny_bases["llama"])
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (tmp_path / "run").mkdir()

    other = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    code, _, err = plc("train", "tiny.yaml", "--output", "run")
    os.close(other)

    assert code == 1
    assert "another process that trains there" in err


def test_a_run_does_not_write_over_the_config_that_it_is_given(
    plc: Any, tiny_bases: dict[str, Path], tmp_path: Path
) -> None:
    config = yaml.safe_dump(tiny_train_config(tmp_path, tiny_bases["llama"]))
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")

    code, _, err = plc("train", "config.yaml", "--output", ".")

    assert code == 1
    assert "starting a run in .: config.yaml, not of a run, which the run would overwrite." in err
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == config


@pytest.mark.parametrize(
    "command",
    [
        "train a.yaml",
        "export",
        "fetch",
        "generate bundle --input a.jsonl",
        "prepare csv --input a.csv --taskname a",
        "prepare squad --input a",
        "import checkpoint a",
        "import peft a --task a --template {a}",
        "tasks export-peft a b",
    ],
)
def test_an_empty_output_is_not_the_current_folder(plc: Any, tmp_path: Path, command: str) -> None:
    code, _, err = plc(*command.split(), "--output", "")

    assert code == 2
    assert "it is empty; write . for the current folder." in err
    assert not any(tmp_path.iterdir())


def test_a_field_that_is_not_utf8_says_so(plc: Any, work: Path) -> None:
    code, _, err = plc("generate", work / "bundle", "--task", "tone", "--field", "sentence=\udcff")

    assert code == 2
    assert "--field 'sentence=\\udcff': not UTF-8." in err


# What an export may choose


def export(plc: Any, work: Path, *options: str) -> tuple[int, str, str]:
    tables = ("--prompts", work / "table.safetensors", "--base", work / "base", "--output", "b")
    result: tuple[int, str, str] = plc("export", *tables, *options)
    return result


def test_a_dry_run_says_what_it_would_make_and_writes_nothing(
    plc: Any, work: Path, tmp_path: Path
) -> None:
    code, out, _ = export(plc, work, "--dry-run", "--fold", "never", "--sampling", "graph")

    assert code == 0
    passes = "merge-products, fuse-residual-norms, sample-in-graph, link-functions"
    assert f"passes: {passes}" in out
    assert "--fold never" in out
    reason = "native-cpu does not take it: heads of 8; expected a multiple of 16"
    if instruction_set() not in (None, "portable"):
        assert f"target onnx-cpu (auto): {reason}\n" in out
    reason = "what onnx-cpu rounds loses something; --quantize int8 rounds it"
    assert f"quantize none (auto): {reason}\n" in out
    assert "nothing was written" in out
    assert not (tmp_path / "b").exists()


def test_a_dry_run_as_json_is_the_forecast(plc: Any, work: Path) -> None:
    code, out, _ = export(plc, work, "--dry-run", "--json")

    forecast = json.loads(out)
    assert code == 0
    assert forecast["target"] == forecast["choices"]["target"]["chosen"] == "onnx-cpu"
    assert (
        forecast["choices"]["target"]["asked"] == forecast["choices"]["quantize"]["asked"] == "auto"
    )
    assert forecast["choices"]["quantize"]["chosen"] == "none"
    assert forecast["disk_bytes"] > forecast["base"]["weight_bytes"] > 0
    assert [task["task"] for task in forecast["tasks"]][:2] == ["tone", "ask"]


def test_the_defaults_of_the_command_are_those_of_python() -> None:
    from pl_compile.cli.export import command
    from pl_compile.config.build import BuildOptions
    from pl_compile.driver.export_request import ExportRequest

    given = {option.name: option.default for option in command.params}

    assert given["target"] == ExportRequest.target == "auto"
    assert given["quantize"] == BuildOptions.quantize == "auto"
    assert given["fold"] == ExportRequest.fold
    assert (given["dtype"], given["sampling"]) == (BuildOptions.dtype, BuildOptions.sampling)


def test_what_is_named_is_built_and_scored_beside_the_floats(
    plc: Any, work: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", tiny_examples(6))

    code, out, err = export(
        plc,
        work,
        *("--target", "onnx-cpu", "--quantize", "int8", "--block", "0", "--no-parity"),
        *("--evaluate", str(tmp_path / "rows.jsonl")),
    )

    assert code == 0
    assert "Scores of the bundle, beside the floats that its weights came from" in out
    scores = [line for line in out.splitlines() if "accuracy" in line]
    assert len(scores) == 1
    assert scores[0].count("│ tone") == 1
    assert len([cell for cell in scores[0].split("│") if cell.strip()]) == 6
    assert not [
        line for line in out.splitlines() if "(auto)" in line and not line.startswith("fold ")
    ]
    assert "target" not in err


def test_options_that_contradict_each_other_are_one_line(plc: Any, work: Path) -> None:
    code, _, err = export(plc, work, "--block", "16")

    assert code == 1
    assert err == (
        "error: reading the build options: block 16, and quantize auto, which sets it itself: name "
        "int4 or int8.\n"
    )


def test_weights_by_channel_and_tokens_from_the_graph(plc: Any, work: Path, tmp_path: Path) -> None:
    code, _, _ = export(
        plc,
        work,
        *("--quantize", "int8", "--block", "0", "--sampling", "graph", "--candidates", "20"),
        *("--dump-passes", "passes", "--no-parity"),
    )

    assert code == 0
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["precision"]["quantization"] == "int8"
    assert manifest["graph"]["candidates"] == 20
    assert len(list((tmp_path / "passes").glob("*.txt"))) == 7


def test_probabilities_of_choices(plc: Any, work: Path) -> None:
    request = ("generate", work / "bundle", "--task", "tone", "--field", "sentence=cold")

    code, out, _ = plc(*request, "--probabilities", "--json")

    labels = json.loads(out)["labels"]
    assert code == 0
    assert {label["label"] for label in labels} == {"positive", "negative", "neutral"}
    assert sum(label["probability"] for label in labels) == pytest.approx(1)
    assert [label["probability"] for label in labels] == sorted(
        (label["probability"] for label in labels), reverse=True
    )
    assert "log-probability" in plc(*request, "--probabilities")[1]
    assert plc("generate", work / "bundle", "--input", "a", "--probabilities")[0] == 2
    code, _, err = plc(*request, "--probabilities", "--max-tokens", "3")
    assert code == 2
    assert "--max-tokens does not go with --probabilities" in err


# Options of requests


def test_each_line_of_a_file_may_have_options_of_its_own(
    plc: Any, work: Path, tmp_path: Path, read_jsonl: Any
) -> None:
    row = {"taskname": "ask", "question": "why?", "place": "a"}
    own: list[dict[str, Any]] = [
        {},
        {"max_tokens": 3, "min_tokens": 0},
        {"log_probs": 1, "priority": 2, "timeout": 1000},
        {"temperature": 3, "seed": 5, "top_k": 0},
        {"bad_words": ["a", "e"], "no_repeat_ngram": 1, "stop": ["\n"]},
        {"timeout": 1e-9},
    ]
    requests = tmp_path / "r.jsonl"
    requests.write_text("".join(json.dumps({**row, "options": each}) + "\n" for each in own))
    common = ("--max-tokens", "9", "--min-tokens", "9", "--output", "answers.jsonl")

    code, _, err = plc("generate", work / "bundle", "--input", requests, *common)

    answers = read_jsonl(tmp_path / "answers.jsonl")
    with Session.open(work / "bundle") as session:
        request = Request("ask", {"question": "why?", "place": "a"}, max_tokens=9, min_tokens=9)
        expected = session.generate([with_options(request, each) for each in own])
    assert code == 0
    assert "1 of 6 answers are not finished: timeout" in err
    assert [answer["token_ids"] for answer in answers] == [list(r.token_ids) for r in expected]
    assert [answer["finish_reason"] for answer in answers] == [r.finish_reason for r in expected]
    assert len({tuple(answer["token_ids"]) for answer in answers}) == 5
    assert ["log_probs" in answer for answer in answers] == [index == 2 for index in range(6)]
    assert len(answers[2]["log_probs"]) == 9
    assert answers[5]["finish_reason"] == "timeout"


def test_wrong_options_of_lines_are_all_told_with_their_places(
    plc: Any, work: Path, tmp_path: Path
) -> None:
    row = {"taskname": "tone", "sentence": "cold"}
    own: list[dict[str, Any]] = [
        {},
        {"max_tokens": 0},
        {"temperature": -1},
        {"bad_words": ["neutral"]},
    ]
    requests = tmp_path / "r.jsonl"
    requests.write_text("".join(json.dumps({**row, "options": each}) + "\n" for each in own))

    code, out, err = plc("generate", work / "bundle", "--input", requests, "--output", "a.jsonl")

    assert (code, out) == (1, "")
    assert [f"r.jsonl:{line}: " in err for line in (1, 2, 3, 4)] == [False, True, True, True]
    assert "the bad word 'neutral' in the choice 'neutral'" in err
    assert not (tmp_path / "a.jsonl").exists()


def test_an_answer_as_json_has_its_counts_and_log_probabilities(plc: Any, work: Path) -> None:
    request = ("generate", work / "bundle", "--task", "tone", "--field", "sentence=cold", "--json")

    code, out, _ = plc(*request, "--log-probs", "2")

    answer = json.loads(out)
    assert code == 0
    assert answer["prompt_tokens"] > answer["prefix_tokens"] >= 0
    assert [each["token_id"] for each in answer["log_probs"]] == answer["token_ids"]
    assert {len(each["top"]) for each in answer["log_probs"]} == {2}
    assert "log_probs" not in json.loads(plc(*request)[1])
    code, _, err = plc(*request[:-1], "--log-probs", "2")
    assert code == 2
    assert "--log-probs goes with --json or --output" in err


def test_an_answer_that_is_not_finished_is_told(plc: Any, work: Path) -> None:
    request = ("generate", work / "bundle", "--task", "tone", "--field", "sentence=cold")

    code, out, err = plc(*request, "--timeout", "1e-9")

    assert (code, out) == (0, "\n")
    assert "the answer is not finished: 1e-09 s were over" in err
    assert json.loads(plc(*request, "--timeout", "1e-9", "--json")[1])["finish_reason"] == "timeout"
    assert plc(*request, "--timeout", "0")[0] == 2
    for number in ("inf", "nan"):
        code, _, err = plc(*request, "--timeout", number)
        assert (code, f"{number} is not a finite number" in err) == (2, True)


def test_bad_words_of_the_command_line_are_kept_out(plc: Any, work: Path) -> None:
    request = ("generate", work / "bundle", "--task", "ask", "--field", "question=why?")
    longer = ("--field", "place=a", "--min-tokens", "20")
    plain = plc(*request, *longer)[1]
    letters = [letter for letter in "aeiouy" if letter in plain]
    assert letters

    _, out, err = plc(*request, *longer, *(f"--bad-word={letter}" for letter in (*letters, r"\n")))

    assert out.strip()
    assert not any(letter in out for letter in letters)
    assert r"--bad-word \n holds \n as a backslash" in err


# Precision


def test_bf16_that_is_emulated_is_told_with_its_price_and_stands_in_the_json(
    plc: Any, tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No processor has bf16 where oneDNN is kept from it. (This process's has read the variable.)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr("pl_compile.training.precision.slowdown", lambda dtype, device: 4.2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = tiny_train_config(tmp_path, tiny_bases["llama"])
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    settings = ("--set", "trainer.max_steps=1", "--set", "trainer.precision=bf16")

    code, out, err = plc("train", "tiny.yaml", *settings, "--json")

    assert code == 0
    assert json.loads(out)["precision"] == {
        "chosen": "bf16",
        "asked": "bf16",
        "reason": "asked for",
    }
    assert "warning: bf16 is emulated here (the processor has " in err
    assert "a product takes 4.2 times as long as in fp32" in err
    assert "In a new run trainer.precision: auto takes fp32 here." in err


def test_a_run_that_asks_for_nothing_says_what_it_takes_and_why(
    plc: Any, tiny_bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = tiny_train_config(tmp_path, tiny_bases["llama"])
    del config["trainer"]["precision"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    code, out, err = plc("train", "tiny.yaml", "--set", "trainer.max_steps=1", "--json")

    choice = json.loads(out)["precision"]
    assert (code, choice["chosen"], choice["asked"]) == (0, "fp32", "auto")
    assert f"precision: fp32 ({choice['reason']})\n" in err
    assert "emulated" not in err
