"""`plc verify`."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pl_compile.cli.export import fixes_for_tokens, print_parity, print_tokens
from pl_compile.cli.provider import chosen_provider, provider_options
from pl_compile.cli.terminal import TerminalProgress, json_option, need_extra, print_json
from pl_compile.errors import ParityError, list_problems

if TYPE_CHECKING:
    from pl_compile.driver.verify import VerifyResult


@click.command("verify", epilog="Example: plc verify bundle --reference smollm2-135m")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--reference", help="The base, by name or folder: also compare with torch.")
@click.option(
    "--target",
    help="For a bundle for TensorRT: which package's parser to check it with; by default its own.",
)
@partial(provider_options, default="cpu")
@json_option
def command(
    bundle: Path,
    reference: str | None,
    target: str | None,
    provider: str | None,
    provider_pairs: tuple[str, ...],
    provider_library: Path | None,
    as_json: bool,
) -> None:
    """Check BUNDLE: the sums of its files, its self-test vectors, and parity with torch.

    A bundle for TensorRT is checked without a GPU: what TensorRT's parser made of it is computed.
    Any other is computed on this machine's CPU unless --provider names something else.

    Exit code 3 if a comparison is beyond the tolerance.
    """
    from pl_compile.driver.verify import verify_bundle
    from pl_compile.weights.bases import find_base

    if reference is not None:
        need_extra("train", "torch", "transformers", "ml_dtypes")
    folder = None if reference is None else find_base(reference)
    chosen = chosen_provider(provider, provider_pairs, provider_library)
    result = verify_bundle(
        bundle,
        folder,
        flavour=target,
        provider=chosen,
        progress=TerminalProgress(),
    )
    if as_json:
        print_json({**asdict(result), "bundle": str(result.bundle)})
    else:
        click.echo(f"{result.files} files have the sums of the manifest")
        if result.selftests:
            print_parity("Self-tests", result.selftests)
        else:
            click.echo("it holds no self-tests: it was exported without parity")
        if result.parity:
            print_parity("Parity with torch", result.parity)
            print_tokens(result.tokens)
        for each in result.not_compared:
            click.echo(each)
    if not result.passed:
        raise ParityError(
            f"verifying {bundle}",
            found=list_problems(result.failures),
            fix=" ".join(_fixes(result, folder)),
        )


def _fixes(result: "VerifyResult", base: Path | None) -> Iterator[str]:
    """What to do about a failed check, and what may have caused it."""
    yield "Do not serve it."
    if base is not None:
        yield from fixes_for_tokens(result.tokens, base)
    if any(check.difference and not check.other_tokenizer for check in result.tokens):
        yield "Where tokens differ, the bundle's tokenizer is not the base's tokenizer.json."
    yield "Export it again, and report it if that does not help."
