"""What an export is asked to do: the options of `plc export` as a frozen dataclass."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pl_compile.config.build import AUTO, BuildOptions, FoldMode
from pl_compile.config.contract import PromptsMode
from pl_compile.config.targets import TARGETS
from pl_compile.driver.write_triton import BUNDLE
from pl_compile.errors import ConfigError

_BAKED = [name for name, target in TARGETS.items() if target.prompts == "baked"]


@dataclass(frozen=True)
class ExportRequest:
    """What to compile. A field with a text is an option of `plc export`; the text is its help.

    Attributes:
        table: the prompt table.
        base: the Hugging Face folder it was trained on.
        options: how the base is compiled.
        measure_parity: whether the bundle is compared with torch, where torch is installed.
    """

    table: Path
    base: Path
    output: Annotated[Path, "The bundle's folder; a bundle there is replaced."]
    tasks: Annotated[tuple[str, ...], "A task of the table; all if left out."] = ()
    target: Annotated[
        str,
        f"What to build for: {', '.join(TARGETS)}. auto is the fastest on this machine's CPU.",
    ] = AUTO
    prompts: Annotated[
        PromptsMode | None,
        "Whether prompts are given with each step, or are constants of the graph. "
        f"[default: input; baked for {' and '.join(_BAKED)}]",
    ] = None
    capacity: Annotated[
        int | None,
        "Longest sequence of a row; 1024, or less where the base is shorter, if left out.",
    ] = None
    options: BuildOptions = field(default_factory=BuildOptions)
    fold: Annotated[
        FoldMode, "Whether the openings of templates are stored as computed keys and values."
    ] = "auto"
    fold_mib: Annotated[
        int | None,
        "Most MiB of folded prefixes in all. [default: 1024 where all rows share a prefix "
        "(native-cpu); elsewhere half of the weights]",
    ] = None
    calibrate: Annotated[
        tuple[Path, ...],
        "Examples (JSONL) that show which errors of quantised weights matter: GPTQ.",
    ] = ()
    evaluate: Annotated[
        tuple[Path, ...],
        "Examples with answers: score the bundle, and float32 weights if it has others.",
    ] = ()
    triton: Annotated[
        bool, "Make --output a model of Triton Inference Server, with the bundle in 1/bundle."
    ] = False
    dump_passes: Annotated[Path | None, "Write the graph as text after each pass."] = None
    measure_parity: bool = True

    @property
    def bundle(self) -> Path:
        """The bundle's folder."""
        return self.output / BUNDLE if self.triton else self.output

    def __post_init__(self) -> None:
        """Refuses options that contradict each other."""
        if self.fold_mib is not None and (self.fold != "auto" or self.fold_mib < 0):
            raise ConfigError(
                "reading how openings are folded",
                found=f"at most {self.fold_mib} MiB of prefixes, and fold {self.fold}",
                expected="0 or more, and fold auto",
                fix="Leave one of them out.",
            )
        whys = {
            "none": "nothing is quantised",
            AUTO: "quantize auto, which leaves no error that examples could weigh",
        }
        if self.calibrate and self.options.quantize in whys:
            raise ConfigError(
                "reading the build options",
                found=f"data to calibrate on, and {whys[self.options.quantize]}",
                fix="Add --quantize int4 or int8, or leave it out.",
            )
