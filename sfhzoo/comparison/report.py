"""A comparison as Markdown, from the content of comparison.json; columns are aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sfhzoo.posterior import DERIVED

MAX_LISTED = 6
"""warnings per prior and spectrum"""


def format_report(result: Mapping[str, Any]) -> str:
    """All of it: comparison.md."""
    parts = [*_head(result), *_populations(result), *_spectra(result), *_failed(result)]
    return "\n\n".join(parts) + "\n"


def format_short(result: Mapping[str, Any]) -> str:
    """For the terminal: distances and spectra."""
    return "\n\n".join([*_head(result), *_spectra(result), *_failed(result)])


def _failed(result: Mapping[str, Any]) -> list[str]:
    failed = result.get("failed", ())
    lines = "\n".join(f"- {f['object']}: {f['error']}" for f in failed)
    return ["## Left out", lines] if failed else []


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Markdown of a head and rows of cells."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[k]) for row in rows)) for k in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _signed(value: float | None, error: float | None, digits: int = 2) -> str:
    if value is None or error is None:
        return "-"
    return f"{value:.{digits}f} ± {error:.{digits}f}"


# ---- priors -------------------------------------------------------------------------------------


def _head(result: Mapping[str, Any]) -> list[str]:
    n = result["draws"]
    rows = [["prior", "sha256", "training set", "draws without stars"]]
    rows += [
        [p["label"], p["sha256"][:12], p["training_set"][:12], f"{p['n_empty']} of {n}"]
        for p in result["priors"]
    ]
    return [
        "# " + " against ".join(p["label"] for p in result["priors"]),
        f"sfhzoo {result['versions']['sfhzoo']}, seed {result['seed']}, {result['date']}",
        _table(rows),
        "## Distances",
        "Sliced Wasserstein distance in standard deviations per column, and accuracy of a "
        "classifier (0.5: it cannot tell them apart), each with what two halves of one prior "
        "give by chance.",
        _table(_distance_rows(result["distances"])),
    ]


def _distance_rows(distances: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["pair", "masses", "n", "sliced Wasserstein", "chance", "classifier, histories",
             "chance", "classifier, five quantities", "chance"]]  # fmt: skip
    for pair in distances:
        for key in ("as_trained", "matched_mass"):
            found = pair[key]
            cells = [f"{pair['first']} / {pair['second']}", key.replace("_", " ")]
            if found is None:
                rows.append([*cells, "too few in common", *["-"] * 6])
                continue
            w, x, q = (found[k] for k in ("sliced_wasserstein", "classifier_x",
                                          "classifier_derived"))  # fmt: skip
            rows.append([
                *cells, str(found["n"]), _signed(w["value"], w["error"], 3), f"{w['null']:.3f}",
                _signed(x["accuracy"], x["error"], 3), _signed(x["null"], x["null_error"], 3),
                _signed(q["accuracy"], q["error"], 3), _signed(q["null"], q["null_error"], 3),
            ])  # fmt: skip
    return rows


def _populations(result: Mapping[str, Any]) -> list[str]:
    populations = result["populations"]
    parts = [
        "## Populations by mass formed",
        "Galaxies today. Median ± its error (16 to 84 % of the galaxies); quenched means an sSFR "
        "below 1e-11/yr per 0.6 of the mass formed, log SFR is of the others, over the last bin.",
    ]
    for name, title in (
        ("n", "Draws"), ("t50", "t50 (Gyr of cosmic time)"), ("log_sfr", "log SFR (Msun/yr)"),
        ("quenched", "Quenched fraction"), ("logzsol", "log Z/Z_sun, weighted by mass"),
    ):  # fmt: skip
        rows = [["log mass formed", *populations]]
        for k, first in enumerate(next(iter(populations.values()))):
            low, high = first["log_mass"]
            rows.append([f"{low:g}-{high:g}", *(_cell(t[k], name) for t in populations.values())])
        parts += [f"### {title}", _table(rows)]
    return parts


def _cell(row: Mapping[str, Any], name: str) -> str:
    found = row[name]
    if found is None:
        return "-"
    if name == "n":
        return str(found)
    if name == "quenched":
        return _signed(found["value"], found["error"])
    return f"{_signed(found['median'], found['error'])} ({found['p16']:.2f} to {found['p84']:.2f})"


# ---- spectra ------------------------------------------------------------------------------------


def _spectra(result: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    for spectrum in result["spectra"]:
        parts += _spectrum(spectrum)
    if len(result["spectra"]) > 1 and result["bayes_factors"]:
        parts += ["## All spectra", _table(_bayes_rows(result["bayes_factors"]))]
    return parts


def _spectrum(spectrum: Mapping[str, Any]) -> list[str]:
    priors = spectrum["priors"]
    first, *others = priors
    parts = [
        f"## {spectrum['object']}",
        f"Redshift {spectrum['redshift']:.4f}, {spectrum['n_pixels']} pixels. Median, distances "
        f"to 84 and 16 %; behind it the difference from {first} in units of both errors.",
    ]
    rows = [["quantity", *priors]]
    against = {d["second"]: d["quantities"] for d in spectrum["differences"]
               if d["first"] == first}  # fmt: skip
    for name in priors[first]["quantities"]:
        cells = [_quantity(priors[first]["quantities"][name])]
        for other in others:
            difference = against[other].get(name) if name in DERIVED else None
            tail = "" if difference is None else f"  [{difference['in_errors']:+.1f}]"
            cells.append(_quantity(priors[other]["quantities"][name]) + tail)
        rows.append([name, *cells])
    rows.append(["chi2 per pixel", *(f"{p['chi2_per_pixel']:.2f}" for p in priors.values())])
    tails = (p["explanation"]["tail"] for p in priors.values())
    rows.append(["prior draws as unusual", *(f"{100 * t:.2g} %" for t in tails)])
    parts.append(_table(rows))
    if spectrum["bayes_factors"]:
        parts.append(_table(_bayes_rows(spectrum["bayes_factors"])))
        parts.append(
            f"Evidences are for errors of {spectrum['error_scale']:.3f} times the file's."
        )
    parts += [f"**{spectrum['flag']}**"] if spectrum["flag"] else []
    return parts


def _quantity(row: Mapping[str, Any]) -> str:
    if row["median"] is None:
        return "-"
    digits = 3 if max(abs(row["median"]), row["p84"] - row["p16"]) < 100 else 1
    up, down = row["p84"] - row["median"], row["median"] - row["p16"]
    return f"{row['median']:.{digits}f} +{up:.{digits}f} -{down:.{digits}f}"


def _bayes_rows(factors: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = [["ln Bayes factor", "as trained", "common mass prior"]]
    for b in factors:
        n = f", {b['n']} spectra" if "n" in b else ""
        rows.append([
            f"{b['first']} / {b['second']}{n}",
            _signed(b["ln_b"], b["error"]),
            _signed(b["ln_b_common"], b["error_common"]),
        ])  # fmt: skip
    return rows
