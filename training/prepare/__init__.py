"""Publishers' data sets to JSON lines: one file and one function for each set.

Every function takes the input, the output folder and its own options, writes each file whole or not
at all, and returns the number of rows by file name. Knows nothing of templates, tokens or models.
"""

from collections.abc import Callable, Mapping

from pl_compile.training.prepare.assistant import prepare_assistant
from pl_compile.training.prepare.csv_file import prepare_csv
from pl_compile.training.prepare.phrasebank import prepare_phrasebank
from pl_compile.training.prepare.squad import prepare_squad

__all__ = [
    "PREPARERS",
    "prepare_assistant",
    "prepare_csv",
    "prepare_phrasebank",
    "prepare_squad",
]

PREPARERS: Mapping[str, Callable[..., dict[str, int]]] = {
    "squad": prepare_squad,
    "phrasebank": prepare_phrasebank,
    "assistant": prepare_assistant,
    "csv": prepare_csv,
}
