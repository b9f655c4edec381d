"""The report of a validation: Markdown, and the short verdict for a terminal."""

from __future__ import annotations

from typing import Any

from sfhzoo.diagnostics.coverage import LEVELS
from sfhzoo.diagnostics.mocks import BANDS
from sfhzoo.diagnostics.scorecard import QUANTITIES, Thresholds


def format_report(metrics: dict[str, Any]) -> str:
    """The content of report.md."""
    parts = [
        _format_head(metrics),
        "## Verdict\n\n" + format_verdict(metrics),
        *(format_set(name, s) for name, s in metrics["sets"].items()),
        _format_notes(metrics),
        "Figures: `coverage.png`, `ranks.png`, `tarp.png`, `recovery.png`, `conditional.png`.",
    ]
    return "\n\n".join(p for p in parts if p)


def format_verdict(metrics: dict[str, Any]) -> str:
    """Every check with its value and limit."""
    lines = ["| check | value | limit | |", "|---|---|---|---|"]
    for c in metrics["checks"]:
        value, limit = format_number(c["value"]), format_number(c["limit"])
        verdict = "ok" if c["passed"] else "**missed**"
        # a bar would end the table's cell
        name = c["name"].replace("|", "\\|")
        lines.append(f"| {name} | {value} | {c['relation']} {limit} | {verdict} |")
    if metrics["widened"]:
        lines += ["", format_widening(metrics)]
    return "\n".join(lines)


def format_widening(metrics: dict[str, Any]) -> str:
    """Why the limits are not those of a full run."""
    full = Thresholds()
    return (
        f"Only {metrics['mocks_per_band']} mocks per band: the limits on deviations "
        f"({full.mean_deviation:g}, {full.largest_deviation:g}, {full.tarp_deviation:g} for "
        f"{full.full_band} mocks or more) are widened by the growth of the binomial error."
    )


def format_number(value: float | None) -> str:
    """Three digits that count; a dash for what could not be measured."""
    return "–" if value is None else f"{value:.3g}"


def _format_head(metrics: dict[str, Any]) -> str:
    run = metrics["run"]
    signed = metrics["signed_deviation"]
    outcome = "passed" if metrics["passed"] else "missed its thresholds"
    used = ", ".join(metrics["samplers_used"]) or "none finished"
    return "\n".join(
        [
            f"# {run['prior']['name']} with {run['grid']['name']}: {outcome}",
            "",
            f"- sampler: {used}; {run['samples']} samples per fit, seed {run['seed']}",
            f"- {metrics['n_mocks']} mocks, {metrics['n_failed']} failed fits (they hold the "
            "truth in no interval)",
            f"- signed deviation at 68 %: {signed['value']:+.3f} ± {signed['error']:.3f} "
            "(negative: over-confident)",
            *(
                f"- slope of the error of {QUANTITIES[q][0]} over A_V: "
                f"{format_number(s['value'])} ± {format_number(s['error'])} dex/mag"
                for q, s in metrics["slope_over_a_v"].items()
            ),
            f"- {metrics['date']}, {metrics['machine']}, {metrics['workers']} workers",
        ]
    )


def format_set(name: str, s: dict[str, Any]) -> str:
    """Heading and table of one set of mocks."""
    aside = "" if name in BANDS else " (no thresholds)"
    heads = [f"{100 * level:.0f} %" for level in LEVELS]
    columns = ["quantity", *heads, "p", "median error", "bias", "width", "bias / width"]
    lines = [
        f"## {name}{aside}",
        "",
        f"{s['n']} mocks, {s['n_failed']} failed; mean deviation {s['mean_deviation']:.3f}, "
        f"largest {s['largest_deviation']:.3f}, TARP {s['tarp_deviation']:.3f}; median "
        f"chi²/pixel {format_number(s['chi2_per_pixel'])}, {format_number(s['wall_s'])} s per "
        f"fit, effective size {format_number(s['ess'])}.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for q, (label, unit) in QUANTITIES.items():
        row = s["quantities"][q]
        hits = [f"{row['coverage'][str(level)]:.2f}" for level in LEVELS]
        keys = ("median_absolute_error", "bias", "width", "pull")
        numbers = [format_number(row[k]) for k in keys]
        cells = [f"{label} ({unit})", *hits, format_number(row["p"]), *numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_notes(metrics: dict[str, Any]) -> str:
    blocks = []
    if metrics["notes"]:
        blocks.append("## Notes\n\n" + "\n".join(f"- {n}" for n in metrics["notes"]))
    if metrics["failures"]:
        lines = (f"- mock {n}: {error}" for n, error in metrics["failures"].items())
        blocks.append("## Failed fits\n\n" + "\n".join(lines))
    if metrics["warnings"]:
        lines = (f"- {n} fits: {text}" for text, n in metrics["warnings"].items())
        blocks.append("## Warnings of the fits (# stands for numbers)\n\n" + "\n".join(lines))
    return "\n\n".join(blocks)
