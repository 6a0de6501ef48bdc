"""`plc import`. The file has another name, since `import` is a keyword of Python."""

from pathlib import Path

import click

from pl_compile.cli.tasks import print_written
from pl_compile.cli.terminal import OutputPath, TerminalProgress, example, json_option, need_extra

_output = click.option(
    "--output",
    metavar="TABLE",
    type=OutputPath(path_type=Path),
    required=True,
    help="The prompt table; its other tasks stay as they are. It is made if it does not exist.",
)


@click.group("import", epilog=example("plc import checkpoint best.safetensors --output TABLE"))
def command() -> None:
    """Bring prompts from elsewhere into a prompt table."""


@command.command(
    epilog=example("plc import peft ADAPTER --task tone --template '{text}:{tone}' --output TABLE")
)
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="What the task is to be called.")
@click.option(
    "--template",
    required=True,
    help="The text with its {field} slots, without virtual tokens: they are put before it, as in "
    "PEFT. If the adapter was trained with a BOS, write it into the text.",
)
@click.option("--choice", "choices", multiple=True, help="One of a closed set of answers.")
@click.option("--truncate-field", help="The field that is cut when a request is too long.")
@click.option("--base", help="The base, by name or folder; the one that ADAPTER names if left out.")
@click.option(
    "--end-token",
    "end_tokens",
    multiple=True,
    help="A token that ends an answer, such as '<|eot_id|>'. [default: all that the base names]",
)
@click.option(
    "--allow-pickle",
    is_flag=True,
    help="Read an adapter_model.bin, as weights only; needs torch.",
)
@_output
@json_option
def peft(
    adapter: Path,
    task: str,
    template: str,
    choices: tuple[str, ...],
    truncate_field: str | None,
    base: str | None,
    end_tokens: tuple[str, ...],
    allow_pickle: bool,
    output: Path,
    as_json: bool,
) -> None:
    """ADAPTER, a folder of PEFT's: prompt tuning, p-tuning or prefix tuning of a causal GPT."""
    need_extra("export", "ml_dtypes")
    if allow_pickle:
        need_extra("train", "torch")
    from pl_compile.driver.bring_in import PeftImport, import_peft

    request = PeftImport(
        adapter=adapter,
        output=output,
        taskname=task,
        template=template,
        choices=choices,
        truncate_field=truncate_field,
        base=base,
        allow_pickle=allow_pickle,
        end_tokens=end_tokens,
    )
    table = import_peft(request, progress=TerminalProgress())
    print_written(output, table, as_json=as_json)


@command.command(
    epilog=example("plc import checkpoint runs/train/checkpoints/best.safetensors --output TABLE")
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@_output
@json_option
def checkpoint(checkpoint: Path, output: Path, as_json: bool) -> None:
    """The prompts that CHECKPOINT, a file of a training run, had learned so far."""
    from pl_compile.driver.bring_in import import_checkpoint

    print_written(output, import_checkpoint(checkpoint, output), as_json=as_json)
