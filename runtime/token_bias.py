"""A bias on tokens of a closed set of answers, named by their texts."""

from collections.abc import Mapping

from pl_compile.config.plain_values import shown
from pl_compile.errors import RequestError, unknown_name
from pl_compile.text.label_trie import LabelTrie
from pl_compile.text.tokenizer import Tokenizer


def bias_by_id(
    bias: Mapping[str, float], trie: LabelTrie | None, tokenizer: Tokenizer, doing: str
) -> dict[int, float]:
    """The bias by token id.

    Args:
        bias: numbers by the texts of tokens; see `Sampling.logit_bias`.
        trie: the closed set; None where the answer is open.
        tokenizer: the base's.
        doing: what is being done, for the message.

    Raises:
        RequestError: an answer that is open, or a text that no token of the set has.
    """
    if not bias:
        return {}
    if trie is None:
        raise RequestError(
            doing,
            found=f"logit_bias {shown(dict(bias))}, and an open answer",
            expected="a task with choices, and an answer constrained to them",
        )
    ids: dict[str, list[int]] = {}
    for token in sorted(set(trie.tokens[1:])):
        ids.setdefault(_text_of(token, tokenizer), []).append(token)
    for text in bias:
        if text not in ids:
            found, fix = unknown_name(text, tuple(ids), what="token")
            raise RequestError(doing, found=f"logit_bias: {found} in the choices", fix=fix)
    return {token: number for text, number in bias.items() for token in ids[text]}


def _text_of(token: int, tokenizer: Tokenizer) -> str:
    """A token's text without outer blanks; for EOS, which has none, its vocabulary entry."""
    return tokenizer.decode([token]).strip() or tokenizer.token_name(token)
