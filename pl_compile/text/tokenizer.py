"""Text to token ids and back: the `tokenizers` library with three rules of ours.

1. Data is never markup: in plain text a special token's characters are characters.
2. Some tokenizers put a blank before whatever they are given (SentencePiece style). Only the text
   that opens a sequence may get it; pieces that continue one must not.
3. Generated ids become text piece by piece, and a character is handed out once it is complete.
"""

import json
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pl_compile.errors import ArtifactError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HfTokenizer


class Tokenizer:
    """The tokenizer of a base.

    Args:
        text: the content of a `tokenizer.json`.
        name: what to call it in messages.

    Raises:
        ArtifactError: the text is no tokenizer that the library can read.
    """

    def __init__(self, text: str, *, name: str = "tokenizer.json") -> None:
        from tokenizers import Tokenizer as HfTokenizer  # some MiB: only where there is text

        self.text = text
        # Whether special tokens are parsed is a switch of the library's object. One object is
        # switched: each takes some 30 MiB and most of a runtime's time to start.
        self._switching = threading.Lock()
        try:
            self._opening = HfTokenizer.from_str(text)
            self._continuing = (
                HfTokenizer.from_str(_without_prefix(text)) if _may_prefix(text) else self._opening
            )
        except Exception as error:  # the library raises bare Exception
            raise ArtifactError(
                f"reading {name}", found=str(error), expected="a tokenizer.json of 'tokenizers'"
            ) from error
        for tokenizer in (self._opening, self._continuing):
            # Settings of whoever saved the file; lengths are the renderer's business.
            tokenizer.no_truncation()
            tokenizer.no_padding()

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face folder or a bundle.

        Raises:
            ArtifactError: there is no readable `tokenizer.json`.
        """
        path = folder / "tokenizer.json"
        try:
            return cls(path.read_text(encoding="utf-8"), name=str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactError(f"reading {path}", found=str(error)) from error

    def encode(self, text: str, *, opens: bool, markup: bool) -> list[int]:
        """The ids of a piece of text; no BOS or EOS is added.

        Args:
            text: any text; may be empty.
            opens: whether it is the first text of its sequence.
            markup: whether special tokens in it are parsed (templates) or are characters (data).
        """
        ids: list[int] = self._encoding(text, opens=opens, markup=markup).ids
        return ids

    def head(self, text: str, keep: int) -> str:
        """The start of a data text that its first `keep` tokens cover, in whole characters."""
        offsets = self._encoding(text, opens=False, markup=False).offsets
        return text if keep >= len(offsets) else text[: offsets[keep][0]]

    def decode(self, ids: list[int]) -> str:
        """The text of generated ids, special tokens left out."""
        text: str = self._opening.decode(ids, skip_special_tokens=True)
        return text

    def token_name(self, token_id: int) -> str:
        """How the vocabulary writes an id, for reports."""
        return str(self._opening.id_to_token(token_id))

    def token_id(self, name: str) -> int | None:
        """The id of what the vocabulary writes so; None where it has no such token."""
        try:
            found: int | None = self._opening.token_to_id(name)
        except UnicodeEncodeError:  # half of a surrogate pair, which no vocabulary can hold
            return None
        return found

    def stream(self) -> "TextStream":
        """A decoder for ids that arrive one by one."""
        return TextStream(self._opening)

    def _encoding(self, text: str, *, opens: bool, markup: bool) -> Any:
        tokenizer = self._opening if opens else self._continuing
        with self._switching:
            tokenizer.encode_special_tokens = not markup
            return tokenizer.encode(text, add_special_tokens=False)


class TextStream:
    """Ids in, text out, each character once it is complete."""

    def __init__(self, tokenizer: "HfTokenizer") -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished."""
        return self._stream.step(self._tokenizer, token_id) or ""


def _may_prefix(text: str) -> bool:
    """Whether anything in the file can put a blank before a text.

    Looks at the two parts that can. Reading all of a file of megabytes takes longer than a step.
    """
    # A token may be called like one of the keys: that costs a look at its id, no more.
    keys = re.finditer(r'"(?:normalizer|pre_tokenizer)"\s*:\s*', text)
    read = json.JSONDecoder().raw_decode
    parts = [json.dumps(read(text, key.end())[0]) for key in keys]
    return re.search(r'"(Prepend|Metaspace)"|"add_prefix_space": true', "".join(parts)) is not None


def _without_prefix(text: str) -> str:
    """The same tokenizer, but without the blank before the text."""
    spec = json.loads(text)
    spec["normalizer"] = _drop(spec.get("normalizer"), "normalizers", "Prepend")
    for part in _parts(spec.get("pre_tokenizer"), "pretokenizers"):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
        if "add_prefix_space" in part:
            part["add_prefix_space"] = False
    return json.dumps(spec)


def _parts(component: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if component is None:
        return []
    parts: list[dict[str, Any]] = component.get(key, [component])
    return parts


def _drop(component: dict[str, Any] | None, key: str, kind: str) -> dict[str, Any] | None:
    kept = [part for part in _parts(component, key) if part.get("type") != kind]
    if len(kept) == len(_parts(component, key)):
        return component
    return {"type": "Sequence", key: kept} if kept else None
