"""The report of an export as one page that needs no network: text, tables, charts as SVG.

In: a `Report`. Out: HTML. Each chart shows one thing: how far numbers are from the reference and
what is allowed, what takes bytes, what took time, what rounding did to each layer.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

from pl_compile.artifact.bundle import Precision
from pl_compile.artifact.plan_record import PlanRecord
from pl_compile.checks.bundle_checks import Comparisons
from pl_compile.checks.lint import TaskLint
from pl_compile.checks.liveness import Liveness
from pl_compile.checks.parity import Parity
from pl_compile.config.build import Choice
from pl_compile.passes.pipeline import PassRecord
from pl_compile.passes.quantize_weights import WeightError
from pl_compile.report.model import BaseCost, Effect, Report, TaskCost
from pl_compile.training.compare_tokens import TokenCheck

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem;
       color: #1b1f24; background: #fff; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem; }
p { margin: .3rem 0; } .note { color: #57606a; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .87rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #d8dee4;
         vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.good { color: #116329; font-weight: 600; } .bad { color: #a40e26; font-weight: 600; }
svg { display: block; margin: .5rem 0; }
svg text { font: 12px system-ui, sans-serif; fill: #1b1f24; }
"""

_LABEL, _BAR, _VALUE, _LINE = 230, 480, 150, 22
_COLOURS = {"bar": "#4c78a8", "limit": "#a40e26", "good": "#54a24b"}


def report_page(report: Report) -> str:
    """The page of a report. A number that is not finite is shown as `inf`."""
    verdict = {"passed": "good", "failed": "bad"}.get(report.parity, "note")
    parts = [
        f"<h1>{escape(report.base.name)} for {escape(report.target)}</h1>",
        f"<p class='note'>weights: {escape(_stored(report.precision))}; "
        f"prompts: {escape(report.prompts)}; sampling: {escape(report.sampling)}; "
        f"base {escape(report.base.fingerprint[:16])}…</p>",
        *_choices(report.choices),
        f"<p>Numbers: <span class='{verdict}'>{escape(report.parity)}</span></p>",
        *(f"<p class='bad'>{escape(failure)}</p>" for failure in report.failures),
        *_comparisons(report.checks),
        *_tokens(report.checks.tokens),
        *_liveness(report.checks.live),
        *_costs(report.cost, report.tasks),
        *_plans(report.plans),
        *_lint(report.lint),
        *_effect(report.effect),
        *_weight_errors(report.weight_errors),
        *_passes(report.passes),
        "<h2>Times</h2>",
        _bars([(name, value, f"{value:.1f} s") for name, value in report.seconds.items()]),
    ]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>plc export: {escape(report.base.name)}</title>"
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _stored(precision: Precision) -> str:
    """How the weights are stored, in words."""
    if precision.quantization == "none":
        return precision.dtype
    shared = f"blocks of {precision.block}" if precision.block else "one scale a channel"
    return f"{precision.quantization}, {shared}, {precision.method}"


def _choices(choices: Mapping[str, Choice]) -> list[str]:
    """A line for each option that was left to the export."""
    return [
        f"<p class='note'>{escape(name)} {escape(choice.chosen)} ({escape(choice.asked)}): "
        f"{escape(choice.reason)}</p>"
        for name, choice in choices.items()
        if choice.reason
    ]


def _comparisons(checks: Comparisons) -> list[str]:
    return [
        *_comparison(
            "Against torch",
            "As served, in one batch of all tasks, against torch row by row.",
            checks.torch,
        ),
        *(f"<p class='note'>{escape(each)}</p>" for each in checks.not_compared),
        *_comparison(
            "Folded against not folded",
            "Openings as stored keys and values, with the same openings computed.",
            checks.folded,
        ),
        *_comparison(
            "Mixed batch against row by row", "A row's neighbours must not change it.", checks.alone
        ),
    ]


def _comparison(title: str, note: str, results: Sequence[Parity]) -> list[str]:
    if not results:
        return []
    columns = [
        "task",
        "largest difference",
        "of largest logit",
        "allowed",
        "equal tokens",
        "answers differ",
        "",
    ]
    rows = [
        [
            result.task,
            f"{_or_infinite(result.max_abs_difference):.2e}",
            f"{_or_infinite(result.relative_difference):.2e}",
            f"{result.tolerance:.0e}",
            f"{result.equal_tokens}/{result.rows * result.steps}",
            "never" if result.first_divergence is None else f"step {result.first_divergence}",
            _verdict(result.passed),
        ]
        for result in results
    ]
    bars = [
        (result.task, _or_infinite(result.relative_difference), result.tolerance)
        for result in results
    ]
    return [
        f"<h2>{title}</h2><p class='note'>{note}</p>",
        _table(columns, rows),
        _limits(bars),
    ]


def _or_infinite(number: float) -> float:
    """A number, or infinity if it is not finite."""
    return number if math.isfinite(number) else math.inf


def _tokens(checks: Sequence[TokenCheck]) -> list[str]:
    """How many tokens of the compared prompts transformers' own tokenizer gives, too."""
    if not checks:
        return []
    rows = [
        [
            check.task,
            f"{check.compared}/{check.tokens}",
            check.difference or "; ".join(filter(None, [check.why_not, check.note])),
            _verdict(not check.difference)
            if check.compared or check.otherwise or check.difference
            else "not compared",
        ]
        for check in checks
    ]
    return [
        "<h2>Tokens against transformers' tokenizer</h2>",
        _table(["task", "compared", "", ""], rows),
    ]


def _plans(records: Sequence[PlanRecord]) -> list[str]:
    if not records:
        return []
    rows = [
        [
            str(rank),
            f"{record.flavour} {record.version}",
            ", ".join(record.compute_capabilities) or "TensorRT's choice",
            f"{record.seconds:.1f}",
            f"{record.plan_bytes / 1e6:.1f}",
            f"{record.peak_memory_bytes / 1e6:.0f}",
            ", ".join(f"{count} {kind}" for kind, count in record.layers.items()),
        ]
        for rank, record in enumerate(records)
    ]
    note = "Built, but never run here; what was compared above is what TensorRT's parser made."
    header = [
        "rank",
        "built by",
        "compute capability",
        "seconds",
        "MB",
        "peak memory, MB",
        "layers",
    ]
    return [f"<h2>Plans</h2><p class='note'>{note}</p>", _table(header, rows)]


def _liveness(results: Sequence[Liveness]) -> list[str]:
    if not results:
        return []
    rows = [
        [
            result.task,
            f"{_or_infinite(result.without):.2e}",
            "-" if result.other is None else f"{result.other:.2e}",
            _verdict(result.is_live),
        ]
        for result in results
    ]
    return [
        "<h2>Is the prompt alive?</h2><p class='note'>How far logits move, as a part of the "
        "largest, without the prompt and with another task's.</p>",
        _table(["task", "without it", "with another's", ""], rows),
    ]


def _costs(base: BaseCost, tasks: Sequence[TaskCost]) -> list[str]:
    rows = [
        [
            task.task,
            str(task.virtual_tokens),
            str(task.head_tokens),
            str(task.saved_tokens),
            _size(task.prompt_bytes),
            _size(task.folded_bytes) if task.folded else "-",
            "-" if task.tasks_per_gib is None else str(task.tasks_per_gib),
            _spared(task.saved_tokens),
            task.reason,
        ]
        for task in tasks
    ]
    bars = [("weights", base.weight_bytes), ("cache of one row", base.cache_bytes_per_row)]
    bars += [(f"{task.task}: prompt", task.prompt_bytes) for task in tasks]
    bars += [(f"{task.task}: folded", task.folded_bytes) for task in tasks if task.folded]
    break_even = tasks[0].break_even_tokens if tasks else 0
    return [
        "<h2>What it costs</h2>",
        f"<p class='note'>{base.parameters / 1e6:.1f} million parameters; "
        f"{base.operations_per_token / 1e6:.0f} million operations and "
        f"{_size(base.kv_bytes_per_token)} of cache a token. An opening is folded from "
        f"{break_even} tokens on. Spared: the part of the prefill that folding saves a request "
        "with 16, 64 and 256 tokens of its own.</p>",
        _table(
            [
                "task",
                "virtual",
                "opening",
                "saved",
                "prompt",
                "folded",
                "per GiB",
                "spared",
                "why",
            ],
            rows,
        ),
        _bars([(name, math.log10(max(1, size)), _size(size)) for name, size in bars]),
        "<p class='note'>Bars are on a logarithmic scale.</p>",
    ]


def _spared(saved: int) -> str:
    return " / ".join(f"{saved / max(1, saved + own):.0%}" for own in (16, 64, 256))


def _lint(results: Sequence[TaskLint]) -> list[str]:
    rows = [
        [
            result.task,
            f"{_or_infinite(result.smallest_norm):.2f} to {_or_infinite(result.largest_norm):.2f}",
            "-" if result.embedding_norm is None else f"{result.embedding_norm:.2f}",
            "yes" if result.bos else "no",
            str(result.room),
            "; ".join(result.findings) or "nothing found",
        ]
        for result in results
    ]
    columns = ["task", "norms", "embeddings", "BOS", "tokens left", "findings"]
    return ["<h2>Task lint</h2>", _table(columns, rows)]


def _effect(results: Sequence[Effect]) -> list[str]:
    if not results:
        return []
    rows = [
        [result.task, str(result.examples), _scores(result.scores), *_of_floats(result)]
        for result in results
    ]
    columns = ["task", "examples", results[0].stored, "float32", "same answers"][: len(rows[0])]
    return ["<h2>Scores of the tasks</h2>", _table(columns, rows)]


def _of_floats(result: Effect) -> list[str]:
    if result.float32 is None or result.same_answers is None:
        return []
    return [_scores(result.float32), f"{result.same_answers:.1f} %"]


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in scores.items() if name != "total")


def _weight_errors(errors: Sequence[WeightError]) -> list[str]:
    if not errors:
        return []
    worst = sorted(errors, key=lambda error: -error.relative_error)
    bars = [
        (
            error.weight.removesuffix(".weight"),
            error.relative_error,
            f"{error.relative_error:.2g}"
            + (
                ""
                if error.relative_output_error is None
                else f" ({error.relative_output_error:.2g})"
            ),
        )
        for error in worst[:24]
    ]
    mean = sum(error.relative_error for error in errors) / len(errors)
    return [
        "<h2>What rounding did to the weights</h2>",
        f"<p class='note'>Norm of the difference over the norm: {mean:.2g} on average over "
        f"{len(errors)} weights; the largest below. In brackets: of their products with the "
        "calibration's activations.</p>",
        _bars(bars),
    ]


def _passes(records: Sequence[PassRecord]) -> list[str]:
    rows = [
        [
            record.name,
            ", ".join(f"{key} {value}" for key, value in record.options.items()),
            "yes" if record.modified else "no",
            str(record.nodes),
            _size(record.weight_bytes),
            f"{record.seconds:.2f} s",
        ]
        for record in records
    ]
    columns = ["pass", "options", "changed", "nodes", "weights", "took"]
    return ["<h2>Passes</h2>", _table(columns, rows)]


def _verdict(passed: bool) -> str:
    return "passed" if passed else "FAILED"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for row in rows:
        cells = []
        for cell in row:
            kind = {"passed": "good", "FAILED": "bad"}.get(cell, "n" if _is_number(cell) else "")
            cells.append(f"<td class='{kind}'>{escape(cell)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit() and " to " not in cell and "tokens" not in cell


def _bars(bars: Sequence[tuple[str, float, str]]) -> str:
    """A bar for each (label, value, text)."""
    largest = max((value for _, value, _ in bars), default=0) or 1
    lines = []
    for place, (label, value, text) in enumerate(bars):
        y, width = place * _LINE, _BAR * max(0.0, value) / largest
        lines.append(
            f"<text x='{_LABEL - 8}' y='{y + 15}' text-anchor='end'>{escape(label)}</text>"
            f"<rect x='{_LABEL}' y='{y + 4}' width='{width:.1f}' height='14' "
            f"fill='{_COLOURS['bar']}'/>"
            f"<text x='{_LABEL + width + 6:.1f}' y='{y + 15}'>{escape(text)}</text>"
        )
    return _svg(len(bars), lines)


def _limits(bars: Sequence[tuple[str, float, float]]) -> str:
    """For each (label, value, limit) a bar and a mark, on a logarithmic scale from 1e-8 to 1."""

    def along(value: float) -> float:
        return _BAR * (math.log10(min(1.0, max(1e-8, value))) + 8) / 8

    lines = []
    for place, (label, value, limit) in enumerate(bars):
        y = place * _LINE
        colour = _COLOURS["good" if value <= limit else "limit"]
        mark = _LABEL + along(limit)
        lines.append(
            f"<text x='{_LABEL - 8}' y='{y + 15}' text-anchor='end'>{escape(label)}</text>"
            f"<rect x='{_LABEL}' y='{y + 4}' width='{along(value):.1f}' height='14' "
            f"fill='{colour}'/>"
            f"<line x1='{mark:.1f}' x2='{mark:.1f}' y1='{y + 1}' y2='{y + 21}' "
            f"stroke='{_COLOURS['limit']}' stroke-width='2'/>"
            f"<text x='{_LABEL + _BAR + 8}' y='{y + 15}'>{value:.1e} of {limit:.0e}</text>"
        )
    return _svg(len(bars), lines)


def _svg(count: int, lines: Sequence[str]) -> str:
    width, height = _LABEL + _BAR + _VALUE, count * _LINE + 4
    return (
        f"<svg role='img' width='{width}' height='{height}' viewBox='0 0 {width} {height}'>"
        f"{''.join(lines)}</svg>"
    )
