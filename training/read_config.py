"""A training config from a file: ours, or one with NeMo's key names."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pl_compile.config.no_effect import texts_without_effect, without_effect
from pl_compile.config.read import build, override, read_yaml
from pl_compile.config.train import TrainConfig
from pl_compile.importers.nemo_config.reading import from_nemo, is_nemo
from pl_compile.progress import SILENT, Progress
from pl_compile.text.template import literal_escapes, parse_templates, texts_of, without_input


def read_train_config(
    path: Path, settings: Sequence[str] = (), *, progress: Progress = SILENT
) -> TrainConfig:
    """The config of a file with `--set` overrides.

    Args:
        path: a YAML file.
        settings: "dotted.key=value", in the file's own key names.
        progress: gets a line about keys without effect, about texts with a backslash where a line
            end may be meant, and about tasks without input.

    Raises:
        ConfigError: something is wrong with the file, the overrides or a template.
    """
    root = override(read_yaml(path), settings)
    ignored: list[str] | None = None
    if is_nemo(root):
        root, ignored = from_nemo(root)
    config = build(TrainConfig, root, doing=f"reading {path}")
    if ignored is None:
        ignored = without_effect(config)
    else:  # with NeMo's keys, only the keys of tasks are ours
        ignored += texts_without_effect(config)
    for line in ignored:
        progress.say(line)
    # Mistakes in templates are reported before anything heavy is loaded.
    for template in parse_templates(config.tasks).values():
        for line in (*literal_escapes(texts_of(template.task)), without_input(template)):
            if line:
                progress.say(line)
    # Absolute from here on: the resolved config must mean the same from any folder.
    data = replace(
        config.data,
        train=tuple(file.absolute() for file in config.data.train),
        validation=tuple(file.absolute() for file in config.data.validation),
    )
    existing = config.existing_table and config.existing_table.absolute()
    base = next(
        (str(f.absolute()) for f in (Path(config.base), path.parent / config.base) if f.is_dir()),
        config.base,
    )
    return replace(config, base=base, data=data, existing_table=existing)
