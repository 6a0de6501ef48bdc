"""Financial PhraseBank v1.0 (`sentence@label`) to JSON lines.

In: one of the publisher's `Sentences_*.txt`. Out: `financial_phrase_bank_train`, `_val`, `_test`
(no label) and `_test_ground_truth`. Fields are `taskname` ("sentiment"), `sentence` and `label`
(" positive", " neutral" or " negative": the space belongs to the answer). The same rows in the same
order as NeMo's script. Knows nothing of templates.
"""

import random
from pathlib import Path

from pl_compile.config.utf8 import split_lines
from pl_compile.errors import ConfigError, DataError, list_problems
from pl_compile.training.prepare.source import read_text
from pl_compile.training.prepare.splits import (
    Row,
    deal_out,
    shuffled,
    without_field,
    write_jsonl,
)

_LABELS = ("positive", "neutral", "negative")
_FILE_NAME = "Sentences_AllAgree.txt"


def prepare_phrasebank(
    input_path: Path, output_dir: Path, *, train_fraction: float = 0.8, seed: int = 1234
) -> dict[str, int]:
    """Writes the four files of the Financial PhraseBank; repeated sentences are kept.

    Args:
        input_path: a `Sentences_*.txt`, or the folder that holds `Sentences_AllAgree.txt`.
        output_dir: made if it does not exist.
        train_fraction: the share of training rows, above 0 and below 1; validation and test each
            get half of the rest.
        seed: of the shuffle.

    Returns:
        The number of rows by file name.

    Raises:
        ConfigError: `train_fraction` is out of its range.
        DataError: the file is missing, or lines have no `@` or an unknown label: all of them.
            Nothing is written then.
        ArtifactError: the files cannot be written.
    """
    if not 0 < train_fraction < 1:
        raise ConfigError(
            "splitting the rows",
            found=f"the training fraction {train_fraction}",
            expected="a number above 0 and below 1",
        )
    path = input_path / _FILE_NAME if input_path.is_dir() else input_path
    rows = _read(path)

    rest = (1 - train_fraction) / 2
    rows = shuffled(rows, random.Random(seed))
    train, val, test = deal_out(rows, (train_fraction, rest, rest))
    return write_jsonl(
        output_dir,
        {
            "financial_phrase_bank_train.jsonl": train,
            "financial_phrase_bank_val.jsonl": val,
            "financial_phrase_bank_test.jsonl": without_field(test, "label"),
            "financial_phrase_bank_test_ground_truth.jsonl": test,
        },
        inputs=(path,),
    )


def _read(path: Path) -> list[Row]:
    lines = split_lines(read_text(path, otherwise="iso-8859-1"))  # the publisher's encoding
    if not lines[-1]:
        lines.pop()

    rows: list[Row] = []
    problems = []
    for number, line in enumerate(lines, start=1):
        sentence, _, label = line.rpartition("@")  # the last one: a sentence may hold an address
        sentence, label = sentence.strip(), label.strip()
        if not sentence:
            problems.append(f"line {number}: {line[:60]!r}, expected sentence@label")
        elif label not in _LABELS:
            problems.append(f"line {number}: label {label!r}, expected one of {', '.join(_LABELS)}")
        else:
            rows.append({"taskname": "sentiment", "sentence": sentence, "label": f" {label}"})
    if not lines:
        problems.append("the file is empty")
    if problems:
        raise DataError(f"reading {path}", found=list_problems(problems))
    return rows
