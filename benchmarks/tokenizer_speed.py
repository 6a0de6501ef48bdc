"""How fast texts become ids: the native runtime's tokenizer beside `tokenizers`.

    python benchmarks/tokenizer_speed.py [TOKENIZER_JSON] [--turns 5] [--mebibytes 4]

TOKENIZER_JSON is the default base's, if none is named. The texts are short ones (translated
messages of this machine's programs, in all languages) and long ones (whole sources of Python, and
documentation), each once. Both are given the same texts, one by one and as data, on one thread
(`encode`, not `encode_batch`), turn by turn; their ids are as many, or it says so. Prints as JSON
for each sort the medians of 10^6 bytes a second, and the median of the ratio within a turn.
Processor time counts, so a machine that others use, too, can measure. g++ builds the program.
"""

import argparse
import gettext
import gzip
import json
import os
import random
import statistics
import struct
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from pl_compile.text.tables import tables_of
from pl_compile.weights.bases import DEFAULT_BASE, cached_base_folder

_HERE = Path(__file__).resolve().parent
_SOURCES = _HERE.parent / "runtime" / "native" / "src"
_NEEDED = "tokenizer tokenizer_tables word_encoder normal_form unicode utf8 words mapped_file"
_LONGEST = 200_000  # bytes of a text


def short_texts() -> Iterator[str]:
    for path in _shuffled(Path("/usr/share/locale"), "*.mo"):
        try:
            with path.open("rb") as file:
                catalogue = gettext.GNUTranslations(file)
        except (OSError, UnicodeError, ValueError, LookupError):
            continue  # a catalogue of another form
        yield from list(map(str, vars(catalogue)["_catalog"].values()))[1:60]


def long_texts() -> Iterator[str]:
    sources = _shuffled(Path(sysconfig.get_paths()["stdlib"]), "*.py")
    documents = _shuffled(Path("/usr/share/doc"), "*.gz")
    for path in (path for pair in zip(sources, documents, strict=False) for path in pair):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        yield data[:_LONGEST].decode("utf-8", "replace")


def _shuffled(folder: Path, pattern: str) -> list[Path]:
    paths = sorted(path for path in folder.rglob(pattern) if path.is_file())
    random.Random(1).shuffle(paths)
    return paths


def _up_to(size: int, texts: Iterator[str]) -> list[str]:
    """The first texts, each once, of so many bytes together."""
    found: dict[str, None] = {}
    for text in texts:
        if size <= 0:
            break
        if text and text not in found:
            found[text] = None
            size -= len(text.encode())
    return list(found)


def library(spec: str, texts: Sequence[str]) -> Callable[[], tuple[float, int]]:
    """A turn of `tokenizers`: seconds, and how many ids."""
    tokenizer = HfTokenizer.from_str(json.dumps(json.loads(spec) | {"added_tokens": []}))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def turn() -> tuple[float, int]:
        total = 0
        begin = time.process_time()
        for text in texts:
            total += len(tokenizer.encode(text, add_special_tokens=False))
        return time.process_time() - begin, total

    return turn


def program(under: ExitStack, spec: str, texts: Sequence[str]) -> Callable[[], tuple[float, int]]:
    """The same of ours, in a process that ends with `under`."""
    folder = Path(under.enter_context(tempfile.TemporaryDirectory()))
    built, tables, data = (folder / name for name in ("program", "tables", "texts"))
    sources = [str(_SOURCES / f"{name}.cc") for name in _NEEDED.split()]
    main = str(_HERE / "tokenizer_speed.cc")
    flags = ["-std=c++17", "-O2", f"-I{_SOURCES}"]
    subprocess.run(["g++", *flags, main, *sources, "-o", str(built)], check=True)
    tables.write_bytes(tables_of(spec))
    encoded = [text.encode() for text in texts]
    data.write_bytes(b"".join(struct.pack("<I", len(each)) + each for each in encoded))
    command = list(map(str, (built, tables, data)))
    pipe = subprocess.PIPE
    process = under.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))

    def turn() -> tuple[float, int]:
        assert process.stdin
        assert process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        seconds, ids = process.stdout.readline().split()
        return float(seconds), int(ids)

    return turn


def measured(spec: str, texts: Sequence[str], turns: int) -> dict[str, Any]:
    size = sum(len(text.encode()) for text in texts)
    with ExitStack() as under:
        both = library(spec, texts), program(under, spec, texts)
        counts = [turn()[1] for turn in both]  # caches are filled
        times = [[turn()[0] for turn in both] for _ in range(turns)]
    return {
        "texts": len(texts),
        "bytes": size,
        "ids": counts[0] if counts[0] == counts[1] else f"{counts[0]} and {counts[1]}: DIFFERENT",
        "tokenizers, MB/s": size / 1e6 / statistics.median(theirs for theirs, _ in times),
        "plc, MB/s": size / 1e6 / statistics.median(ours for _, ours in times),
        "ratio": statistics.median(theirs / ours for theirs, ours in times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", nargs="?", type=Path, help="a tokenizer.json")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--mebibytes", type=float, default=4, help="of texts of each sort")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    path = options.tokenizer or cached_base_folder(DEFAULT_BASE) / "tokenizer.json"
    spec = path.read_text(encoding="utf-8")
    size = int(options.mebibytes * (1 << 20))
    sorts = {"short": short_texts, "long": long_texts}
    results = {
        name: measured(spec, _up_to(size, texts()), options.turns) for name, texts in sorts.items()
    }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
