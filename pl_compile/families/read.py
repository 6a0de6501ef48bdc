"""The `DecoderConfig` of a Hugging Face folder.

Anything in its config.json that would change the computation and that we do not compute is refused
by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pl_compile.config.decoder import DecoderConfig
from pl_compile.config.strict_json import read_json_object
from pl_compile.errors import BaseModelError, list_problems
from pl_compile.families.keys import QUANTIZED
from pl_compile.families.registry import FAMILIES
from pl_compile.families.settings import ANOTHER_BASE, Settings

DEQUANTIZE = (
    "Save the base as floats: load it with transformers and the package that quantised it, then "
    "model.dequantize() and model.save_pretrained(folder)."
)


def read_decoder_config(folder: Path) -> DecoderConfig:
    """The `DecoderConfig` of a Hugging Face folder.

    Raises:
        BaseModelError: no `config.json`, an unsupported family, or a setting we do not compute.
    """
    path = folder / "config.json"
    doing = f"reading {path}"
    try:
        hf = read_json_object(path, BaseModelError, doing)
    except FileNotFoundError:
        fix = "Give a Hugging Face model folder."
        raise BaseModelError(doing, found="no such file", fix=fix) from None
    family = hf.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        # No near name is proposed: gptj is not gpt2.
        said = f"is {family!r:.80}" if "model_type" in hf else "is missing"
        expected = f"a family of: {', '.join(FAMILIES)}"
        raise BaseModelError(
            doing, found=f"'model_type' {said}", expected=expected, fix=ANOTHER_BASE
        )
    _refuse_codes(hf, doing)
    keys = FAMILIES[family].keys
    problems = keys.problems(hf)
    if problems:
        raise BaseModelError(doing, found=list_problems(problems), fix=ANOTHER_BASE)
    aliased = {keys.aliases[key]: value for key, value in hf.items() if key in keys.aliases}
    return FAMILIES[family].read(Settings(hf | aliased, doing))


def _refuse_codes(hf: Mapping[str, Any], doing: str) -> None:
    for key in QUANTIZED:
        how = hf.get(key)
        if how is not None:
            named = how.get("quant_method") if isinstance(how, dict) else None
            raise BaseModelError(
                doing,
                found=f"'{key}'"
                + (f" ({named!s:.40})" if named else "")
                + ": the weights are codes",
                expected="weights that are floats",
                fix=DEQUANTIZE,
            )
