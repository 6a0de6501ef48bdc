"""Random bases: of real shapes if there is a GPU, else tiny ones as stand-ins."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from pl_compile.testing import as_published, write_tiny_base

# The shape of SmolLM2-135M.
SMALL = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
}
# The same with few layers, for parts that compare every number with the CPU.
SHORT = {**SMALL, "num_hidden_layers": 6}
# Wide enough for native blocks of weights; with as many tokens as the real one.
STAND_IN = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
}
VOCAB, POSITIONS = 49152, 1024


def llama_base(
    folder: Path, shape: dict[str, int], *, vocab: int = VOCAB, four_bits: bool = False
) -> Path:
    """A random Llama in float32 with a small tokenizer. One that is there already is used.

    Args:
        folder: it is made.
        shape: keys of `LlamaConfig`.
        vocab: ids; the tokenizer has a few hundred of them.
        four_bits: whether weights have values that 4 bits can hold (8 bits in the embedding):
            rounding random weights would change most answers, whatever computes them.
    """
    if folder.exists():
        return folder
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    staging = folder.with_suffix(".part")
    shutil.rmtree(staging, ignore_errors=True)
    write_tiny_base(staging, "llama")  # for its tokenizer
    torch.manual_seed(8)
    config = LlamaConfig(
        **shape,
        vocab_size=vocab,
        max_position_embeddings=POSITIONS,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
        # So that logits differ by far more than by rounding, whatever the width.
        initializer_range=1 / math.sqrt(shape["hidden_size"]),
    )
    model: Any = LlamaForCausalLM(config)
    if four_bits:
        for parameter in model.model.layers.parameters():
            if parameter.ndim == 2:
                weight = parameter.data.numpy()
                weight[:] = as_published(weight, "q4_0")
        table = model.get_input_embeddings().weight.data.numpy()
        table[:] = as_published(table, "q8_0")
    model.save_pretrained(staging)
    staging.rename(folder)
    return folder


def gpt_of_zeros(folder: Path, *, layers: int, hidden: int, heads: int, vocab: int) -> Path:
    """A GPT-2 of any size in bfloat16 whose file takes no disk: all its numbers are 0.

    Who loads it must give it other numbers. The file is sparse, in the format of safetensors: eight
    bytes with the length of a header, the header in JSON, then the tensors.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    write_tiny_base(folder, "gpt2")  # for its tokenizer
    config = GPT2Config(
        n_embd=hidden,
        n_layer=layers,
        n_head=heads,
        n_inner=4 * hidden,
        n_positions=2048,
        vocab_size=vocab,
        bos_token_id=0,
        eos_token_id=1,
    )
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model: Any = GPT2LMHeadModel(config)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # the embedding
            continue
        start, end = end, end + 2 * tensor.numel()
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return folder
