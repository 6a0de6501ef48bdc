r"""The Assistant set (NLU-Evaluation-Data, Liu et al. 2019) to JSON lines.

In: the folder of fold 1, or any above it; `trainset/` and `testset/csv/` hold one CSV file for each
intent. Out: `assistant_train`, `_val`, `_test` (no label) and `_test_ground_truth`. Fields are
`taskname` ("intent_and_slot"), `utterance` and `label`, as "\nIntent: alarm_set\nSlots: time(six)".
Rows and order are those of NeMo's script, but two of its mistakes are corrected: a slot at the
start of an utterance is kept, and the name of a folder cannot change a label. Knows nothing of
templates.
"""

import random
import re
from pathlib import Path

from pl_compile.errors import DataError, list_problems
from pl_compile.training.prepare.delimited import Record, read_table
from pl_compile.training.prepare.splits import Row, deal_out, shuffled, without_field, write_jsonl

_FOLD_NAME = "KFold_1"
_COLUMNS = ("scenario", "intent", "answer_annotation")
_SLOT = re.compile(r"\[\s*([^\[\]:]*[^\[\]:\s])\s*:\s*([^\[\]]*[^\[\]\s])\s*\]")

Slots = list[tuple[str, str]]


def prepare_assistant(
    input_path: Path, output_dir: Path, *, include_options: bool = False, seed: int = 42
) -> dict[str, int]:
    """Writes the four files of the Assistant set.

    Args:
        input_path: `KFold_1`, or any folder above it.
        output_dir: made if it does not exist.
        include_options: adds the names of all intents (`intent options`, with a space, as in NeMo)
            and of all slots (`slot_options`), each as one text.
        seed: of the two shuffles, of the training rows and then of the test rows. The first half of
            the test rows becomes the validation.

    Returns:
        The number of rows by file name.

    Raises:
        DataError: fold 1 is missing or found twice, or rows are malformed: all of them, each with
            file and line. Nothing is written then.
        ArtifactError: the files cannot be written.
    """
    fold = _find_fold(input_path)
    problems: list[str] = []
    train_parts = _read(fold, "trainset", problems)
    test_parts = _read(fold, "testset/csv", problems)
    if problems:
        raise DataError(f"reading {fold}", found=list_problems(problems))

    options = _options(train_parts + test_parts) if include_options else {}
    generator = random.Random(seed)
    train = shuffled([_row(*part, options) for part in train_parts], generator)
    held_out = shuffled([_row(*part, options) for part in test_parts], generator)
    _, val, test = deal_out(held_out, (0, 0.5, 0.5))
    return write_jsonl(
        output_dir,
        {
            "assistant_train.jsonl": train,
            "assistant_val.jsonl": val,
            "assistant_test.jsonl": without_field(test, "label"),
            "assistant_test_ground_truth.jsonl": test,
        },
        inputs=fold.rglob("*.csv"),
    )


def parse_annotation(annotation: str) -> tuple[str, Slots]:
    """The plain utterance, and the slots in it as (name, value).

    "wake me at [time : six] [time : am]" is "wake me at six am" with the one slot time(six am):
    neighbours of one name are merged, as in NeMo's files.

    Raises:
        ValueError: brackets that do not have the form "[name : value]".
    """
    slots: Slots = []
    end_of_last = 0
    for match in _SLOT.finditer(annotation):
        name, value = match.groups()
        between = annotation[end_of_last : match.start()]
        if slots and slots[-1][0] == name and not between.strip():
            slots[-1] = (name, f"{slots[-1][1]} {value}")
        else:
            slots.append((name, value))
        end_of_last = match.end()
    utterance = _SLOT.sub(r"\2", annotation).strip()
    if "[" in utterance or "]" in utterance:
        raise ValueError(f"brackets in {utterance!r}")
    return utterance, slots


def _find_fold(folder: Path) -> Path:
    candidates = [folder, *sorted(folder.rglob(_FOLD_NAME))]
    folds = [
        path
        for path in candidates
        if (path / "trainset").is_dir() and (path / "testset" / "csv").is_dir()
    ]
    if len(folds) != 1:
        raise DataError(
            f"looking for the Assistant set in {folder}",
            found=", ".join(map(str, folds))
            or (f"no {_FOLD_NAME} in it" if folder.is_dir() else "no such folder"),
            expected=f"one folder {_FOLD_NAME} with trainset/ and testset/csv/",
            fix="Give the unpacked NLU-Evaluation-Data, or its fold itself.",
        )
    return folds[0]


def _read(fold: Path, folder: str, problems: list[str]) -> list[tuple[str, str, Slots]]:
    """Intent, utterance and slots of each row, intents in alphabetical order."""
    paths = sorted((fold / folder).glob("*.csv"), key=lambda path: path.stem)
    parts = []
    found: list[str] = []
    for path in paths:
        table = read_table(path, delimiter=";", quotes="double")
        records = table.records
        found += map(str, table.problems)
        missing = [name for name in _COLUMNS if records and name not in records[0].fields]
        found += [f"{path.name}:1: the column '{name}' is missing" for name in missing]
        for record in [] if missing else records:
            try:
                parts.append(_part(record, intent=path.stem))
            except ValueError as error:
                found.append(f"{record.where}: {error}")
    problems += [
        f"{folder}/{problem}" for problem in found or ([] if parts else ["*.csv: no rows"])
    ]
    return parts


def _part(record: Record, *, intent: str) -> tuple[str, str, Slots]:
    named = f"{record.fields['scenario']}_{record.fields['intent']}"
    if named != intent:
        raise ValueError(f"the intent {named!r} in the file of {intent!r}")
    utterance, slots = parse_annotation(record.fields["answer_annotation"])
    if not utterance:
        raise ValueError("an empty utterance")
    return intent, utterance, slots


def _options(parts: list[tuple[str, str, Slots]]) -> dict[str, str]:
    # NeMo's list of slots ends with "O", its mark for words outside slots; no answer has it.
    intents = {intent for intent, _, _ in parts}
    slot_names = {name for _, _, slots in parts for name, _ in slots}
    return {
        "intent options": ", ".join(sorted(intents)),
        "slot_options": ", ".join(sorted(slot_names)),
    }


def _row(intent: str, utterance: str, slots: Slots, options: dict[str, str]) -> Row:
    listed = ", ".join(f"{name}({value})" for name, value in slots) or "None"
    return {
        "taskname": "intent_and_slot",
        **options,
        "utterance": utterance,
        "label": f"\nIntent: {intent}\nSlots: {listed}",
    }
