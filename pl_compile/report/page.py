"""The report of an export as one page that needs no network: text, tables, charts as SVG.

In: what `report.json` holds. Out: HTML. Charts show one thing each: how far numbers are from the
reference beside what is allowed, what takes bytes, what took time, what rounding did to each layer.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from pl_compile.checks.parity import relative_difference
from pl_compile.config.strict_json import with_null

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


def report_page(report: dict[str, Any]) -> str:
    """The page of a report, in which null stands for a number that is not finite."""
    report = with_null(report)
    checks = report["checks"]
    precision = report["precision"]
    stored = precision["quantization"]
    if stored == "none":
        stored = precision["dtype"]
    else:
        shared = f"blocks of {precision['block']}" if precision["block"] else "one scale a channel"
        stored += f", {shared}, {precision['method']}"
    verdict = {"passed": "good", "failed": "bad"}.get(report["parity"], "note")
    parts = [
        f"<h1>{escape(report['base']['name'])} for {escape(report['target'])}</h1>",
        f"<p class='note'>weights: {escape(stored)}; prompts: {report['prompts']}; sampling: "
        f"{report['sampling']}; base {report['base']['fingerprint'][:16]}…</p>",
        *_choices(report["choices"]),
        f"<p>Numbers: <span class='{verdict}'>{report['parity']}</span></p>",
        *(f"<p class='bad'>{escape(failure)}</p>" for failure in report["failures"]),
        *_comparisons(checks),
        *_tokens(checks["tokens"]),
        *_liveness(checks["live"]),
        *_costs(report),
        *_plans(report["plans"]),
        *_lint(report["lint"]),
        *_effect(report["effect"]),
        *_weight_errors(report["weight_errors"]),
        *_passes(report["passes"]),
        "<h2>Times</h2>",
        _bars([(name, value, f"{value:.1f} s") for name, value in report["seconds"].items()]),
    ]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<title>plc export: {escape(report['base']['name'])}</title>"
        f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _choices(choices: dict[str, Any]) -> list[str]:
    """A line for each option that was left to the export."""
    return [
        f"<p class='note'>{escape(name)} {escape(choice['chosen'])} ({escape(choice['asked'])}): "
        f"{escape(choice['reason'])}</p>"
        for name, choice in choices.items()
        if choice["reason"]
    ]


def _comparisons(checks: dict[str, Any]) -> list[str]:
    titles = {
        "torch": ("Against torch", "As served, in one batch of all tasks, with torch row by row."),
        "folded": (
            "Folded against not folded",
            "Heads as stored keys and values, with the same heads computed.",
        ),
        "alone": ("Mixed batch against row by row", "A row's neighbours must not change it."),
    }
    parts = []
    for kind, (title, note) in titles.items():
        results = checks[kind]
        if not results:
            continue
        rows = []
        bars = []
        for result in results:
            difference = _or_infinite(result["max_abs_difference"])
            relative = relative_difference(difference, result["largest_logit"])
            steps = result["rows"] * result["steps"]
            apart = result["first_divergence"]
            rows.append(
                [
                    result["task"],
                    f"{difference:.2e}",
                    f"{relative:.2e}",
                    f"{result['tolerance']:.0e}",
                    f"{result['equal_tokens']}/{steps}",
                    "never" if apart is None else f"step {apart}",
                    _verdict(result["passed"]),
                ]
            )
            bars.append((result["task"], relative, result["tolerance"]))
        parts += [
            f"<h2>{title}</h2><p class='note'>{note}</p>",
            _table(
                [
                    "task",
                    "largest difference",
                    "of largest logit",
                    "allowed",
                    "equal tokens",
                    "parts ways",
                    "",
                ],
                rows,
            ),
            _limits(bars),
        ]
    return parts


def _or_infinite(number: float | None) -> float:
    """A number of a report: infinite where it has null, as it was before it was written."""
    return math.inf if number is None else number


def _tokens(checks: Sequence[dict[str, Any]]) -> list[str]:
    """What of the compared prompts transformers' own tokenizer gives too."""
    if not checks:
        return []
    # A bundle whose plans are built here may be of an earlier release, which knew no notes.
    rows = [
        [
            check["task"],
            f"{check['compared']}/{check['tokens']}",
            check["difference"] or "; ".join(filter(None, [check["why_not"], check.get("note")])),
            _verdict(not check["difference"])
            if check["compared"] or check.get("otherwise") or check["difference"]
            else "not compared",
        ]
        for check in checks
    ]
    return [
        "<h2>Tokens against transformers' tokenizer</h2>",
        _table(["task", "compared", "", ""], rows),
    ]


def _plans(records: Sequence[dict[str, Any]]) -> list[str]:
    if not records:
        return []
    rows = [
        [
            str(rank),
            f"{record['flavour']} {record['version']}",
            ", ".join(record["compute_capabilities"]) or "TensorRT's choice",
            f"{record['seconds']:.1f}",
            f"{record['plan_bytes'] / 1e6:.1f}",
            f"{record['peak_memory_bytes'] / 1e6:.0f}",
            ", ".join(f"{count} {kind}" for kind, count in record["layers"].items()),
        ]
        for rank, record in enumerate(records)
    ]
    note = "Built, and never run here; what was compared above is what TensorRT's parser made."
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


def _liveness(results: Sequence[dict[str, Any]]) -> list[str]:
    if not results:
        return []
    rows = [
        [
            result["task"],
            f"{_or_infinite(result['without']):.2e}",
            "-" if result["other"] is None else f"{result['other']:.2e}",
            _verdict(result["is_live"]),
        ]
        for result in results
    ]
    return [
        "<h2>Is the prompt alive?</h2><p class='note'>How far logits move, as a part of the "
        "largest, without the prompt and with another task's.</p>",
        _table(["task", "without it", "with another's", ""], rows),
    ]


def _costs(report: dict[str, Any]) -> list[str]:
    base = report["cost"]
    rows = [
        [
            task["task"],
            str(task["virtual_tokens"]),
            str(task["head_tokens"]),
            str(task["saved_tokens"]),
            _size(task["prompt_bytes"]),
            _size(task["folded_bytes"]) if task["folded"] else "-",
            "-" if task["tasks_per_gib"] is None else str(task["tasks_per_gib"]),
            _spared(task["saved_tokens"]),
            task["reason"],
        ]
        for task in report["tasks"]
    ]
    bars = [("weights", base["weight_bytes"]), ("cache of one row", base["cache_bytes_per_row"])]
    bars += [(f"{t['task']}: prompt", t["prompt_bytes"]) for t in report["tasks"]]
    bars += [(f"{t['task']}: folded", t["folded_bytes"]) for t in report["tasks"] if t["folded"]]
    break_even = report["tasks"][0]["break_even_tokens"] if report["tasks"] else 0
    return [
        "<h2>What it costs</h2>",
        f"<p class='note'>{base['parameters'] / 1e6:.1f} million parameters; "
        f"{base['operations_per_token'] / 1e6:.0f} million operations and "
        f"{_size(base['kv_bytes_per_token'])} of cache a token. A head is folded from "
        f"{break_even} tokens on. Spared: the part of the prefill that folding saves a request "
        "with 16, 64 and 256 tokens of its own.</p>",
        _table(
            [
                "task",
                "virtual",
                "head",
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


def _lint(results: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [
            result["task"],
            f"{_or_infinite(result['smallest_norm']):.2f} to "
            f"{_or_infinite(result['largest_norm']):.2f}",
            "-" if result["embedding_norm"] is None else f"{result['embedding_norm']:.2f}",
            "yes" if result["bos"] else "no",
            str(result["room"]),
            "; ".join(result["findings"]) or "nothing found",
        ]
        for result in results
    ]
    columns = ["task", "norms", "embeddings", "BOS", "tokens left", "findings"]
    return ["<h2>Task lint</h2>", _table(columns, rows)]


def _effect(results: Sequence[dict[str, Any]]) -> list[str]:
    if not results:
        return []
    rows = [
        [
            result["task"],
            str(result["examples"]),
            _scores(result["scores"]),
            *(
                []
                if result["float32"] is None
                else [_scores(result["float32"]), f"{result['same_answers']:.1f} %"]
            ),
        ]
        for result in results
    ]
    columns = ["task", "examples", results[0]["stored"], "float32", "same answers"][: len(rows[0])]
    return ["<h2>Scores of the tasks</h2>", _table(columns, rows)]


def _scores(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in scores.items() if name != "total")


def _weight_errors(errors: Sequence[dict[str, Any]]) -> list[str]:
    if not errors:
        return []
    worst = sorted(errors, key=lambda error: -error["relative_error"])
    bars = [
        (
            error["weight"].removesuffix(".weight"),
            error["relative_error"],
            f"{error['relative_error']:.2g}"
            + (
                ""
                if error["relative_output_error"] is None
                else f" ({error['relative_output_error']:.2g})"
            ),
        )
        for error in worst[:24]
    ]
    mean = sum(error["relative_error"] for error in errors) / len(errors)
    return [
        "<h2>What rounding did to the weights</h2>",
        f"<p class='note'>Norm of the difference over the norm: {mean:.2g} on average over "
        f"{len(errors)} weights; the largest below. In brackets: of their products with the "
        "calibration's activations.</p>",
        _bars(bars),
    ]


def _passes(records: Sequence[dict[str, Any]]) -> list[str]:
    rows = [
        [
            record["name"],
            ", ".join(f"{key} {value}" for key, value in record["options"].items()),
            "yes" if record["modified"] else "no",
            str(record["nodes"]),
            _size(record["weight_bytes"]),
            f"{record['seconds']:.2f} s",
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
