"""`plc build`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pl_compile.cli.plan import plan_options, print_plans
from pl_compile.cli.terminal import TerminalProgress, json_option, need_extra, print_json


@click.command("build", epilog="Example: plc build bundle")
@click.argument("bundle", type=click.Path(path_type=Path))
@plan_options
@click.option(
    "--attention",
    type=click.Choice(["auto", "mask", "lower-right"]),
    default="auto",
    show_default=True,
    help="How attention is told what a token may see; auto tries it on this machine's GPU.",
)
@json_option
def command(
    bundle: Path,
    max_batch: int | None,
    ep_context: bool,
    compute_capabilities: tuple[str, ...],
    attention: str,
    as_json: bool,
) -> None:
    """Build the TensorRT plans of BUNDLE, on the device that will run them.

    For a bundle that was exported with --defer-build. Plans that it has are built again.
    """
    need_extra("export", "onnx", "onnx_ir")
    from pl_compile.driver.build_plans import build_bundle

    form: Any = attention.replace("-", "_")
    result = build_bundle(
        bundle,
        max_batch=max_batch,
        compute_capabilities=compute_capabilities,
        ep_context=ep_context,
        attention=form,
        progress=TerminalProgress(),
    )
    if as_json:
        print_json({**asdict(result), "bundle": str(result.bundle)})
        return
    print_plans(result.plans)
    click.echo(f"built {len(result.plans)} in {bundle}; attention {result.attention}")
