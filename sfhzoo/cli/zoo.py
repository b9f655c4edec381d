"""`sfhzoo list`, `show`, `pull`, `path`, `verify`, `remove`, `cite` and `publish`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from sfhzoo.errors import SfhzooError
from sfhzoo.zoo import disk
from sfhzoo.zoo.cards import KINDS, Card, card_to_dict, is_repo, read_card
from sfhzoo.zoo.catalogue import Catalogue, load_catalogue, load_packaged

Command = Callable[..., None]


@dataclass(frozen=True)
class Zoo:
    """The catalogue and this disk, as the options of a command say."""

    extra: Sequence[str]
    cache_dir: Path | None
    offline: bool

    @cached_property
    def packaged(self) -> Catalogue:
        return load_packaged()

    @cached_property
    def catalogue(self) -> Catalogue:
        loaded = load_catalogue(self.extra, self.cache_dir, self.offline)
        for note in loaded.notes:
            click.echo(f"warning: {note}", err=True)
        return loaded

    @cached_property
    def pulled(self) -> dict[str, Card]:
        return disk.recorded(self.cache_dir)

    def find(self, name: str) -> Card:
        """What `name` stands for on this disk, else in the catalogue, which may be far away."""
        own = self.packaged.cards.get(name)
        if own and own.bundled:
            return own
        return self.pulled[name] if name in self.pulled else self.catalogue.find(name)

    def find_published(self, name: str) -> Card:
        """The card to fetch: the catalogue's where it is published there, else the disk's."""
        if "@" in name and is_repo(name.partition("@")[0]):
            return self._find_in_hub(name)
        own = self.packaged.cards.get(name)
        if not (own and own.bundled) and not (self.offline and name in self.pulled):
            listed = self.catalogue.cards.get(name)
            if listed and listed.state != "recipe only":
                return listed
        return self.find(name)

    def _find_in_hub(self, where: str) -> Card:
        from sfhzoo.zoo import hub

        repo, _, revision = where.partition("@")
        source, snapshot = hub.snapshot_of(
            repo, revision, cache_dir=self.cache_dir, offline=self.offline,
            progress=sys.stderr.isatty(), refresh=not self.offline,
        )  # fmt: skip
        card = replace(read_card(snapshot / "README.md"), source=source)
        self.catalogue.extended([card], where)
        return card

    def all(self) -> list[Card]:
        """The catalogue's entries as this disk has them, then what else was pulled."""
        names = [*self.catalogue.cards, *(n for n in self.pulled if n not in self.catalogue.cards)]
        return [self.find(name) for name in names]


def _zoo_options(command: Command) -> Command:
    """The options every command of the zoo has; the command gets a `Zoo`."""

    def wrapped(
        catalogue: tuple[str, ...], cache_dir: Path | None, offline: bool, **options: Any
    ) -> None:
        command(zoo=Zoo(catalogue, cache_dir, offline), **options)

    wrapped.__doc__ = command.__doc__
    for option in (
        click.option(
            "--offline", is_flag=True, help="Make no request; say what is missing instead."
        ),
        click.option(
            "--cache-dir",
            type=click.Path(file_okay=False, path_type=Path),
            help="Where pulled artifacts are [default: SFHZOO_CACHE_DIR or the Hub's own cache].",
        ),
        click.option(
            "--catalogue",
            multiple=True,
            metavar="WHERE",
            help="Add a catalogue: .json file, directory of cards, Hub repository ORG/NAME[@REV]. "
            "May be repeated; SFHZOO_CATALOGUE holds others, separated by commas.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def _each(names: Iterable[str], work: Callable[[str], None]) -> None:
    """Do all, even when some fail; an error line for each that does, and the first exit code."""
    code = 0
    for name in names:
        try:
            work(name)
        except SfhzooError as e:
            click.echo(f"error: {' '.join(str(e).split())}", err=True)
            code = code or e.exit_code
    click.get_current_context().exit(code)


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e6:.1f} MB"


# ---- list ---------------------------------------------------------------------------------------


@click.command("list")
@click.option("--kind", type=click.Choice(KINDS), help="Only artifacts of this kind.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@_zoo_options
def list_command(zoo: Zoo, kind: str | None, as_json: bool) -> None:
    """What is in the zoo, and what is on this disk.

    Bundled artifacts are part of the package, `sfhzoo pull` fetches published ones, and `sfhzoo
    show` says how to make one that is a recipe only.
    """
    rows = [_row(card, zoo) for card in zoo.all() if kind in (None, card.kind)]
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    head = ("name", "kind", "version", "simulation/engine", "state", "size", "on disk")
    cells = [
        (
            row["name"], row["kind"], f"v{row['version']}", row["origin"], row["state"],
            _megabytes(row["size"]), "yes" if row["path"] else "no",
        )
        for row in rows
    ]  # fmt: skip
    for line in _format_table([head, *cells], right=(5,)):
        click.echo(line)


def _row(card: Card, zoo: Zoo) -> dict[str, Any]:
    place = disk.place_of(card, zoo.cache_dir)
    return {
        "name": card.name,
        "kind": card.kind,
        "version": card.version,
        "origin": card.origin,
        "state": card.state,
        "size": disk.size_of(card, place),
        "path": str(place) if place else None,
        "summary": card.summary,
    }


def _format_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


# ---- show, cite ---------------------------------------------------------------------------------


@click.command("show")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the cards as a JSON list.")
@_zoo_options
def show_command(zoo: Zoo, names: tuple[str, ...], as_json: bool) -> None:
    """The card of NAME: what it is, how it was made, its metrics, its citation."""
    cards = [zoo.find(name) for name in names]
    if as_json:
        shown = [{**card_to_dict(card), **_row(card, zoo)} for card in cards]
        click.echo(json.dumps(shown, indent=1, ensure_ascii=False))
        return
    for i, card in enumerate(cards):
        click.echo("\n".join(["", "-" * 80, ""] * bool(i) + _format_card(card, _row(card, zoo))))


def _format_card(card: Card, row: dict[str, Any]) -> list[str]:
    facts = {
        "kind": card.kind,
        "engine" if card.kind == "grid" else "simulation": card.origin,
        "state": card.state,
        "on disk": row["path"] or "no",
        "size": _megabytes(row["size"]),
        "license": card.license,
        "source": f"{card.source.repo}@{card.source.revision}" if card.source else None,
        "sha256": card.identity,
        "needs": card.needs,
        "nearest": ", ".join(card.nearest),
        "made by": (card.recipe or "").replace("\n", f"\n{'':12s}"),
    }
    lines = [click.style(card.name, bold=True), card.summary, ""]
    lines += [f"{key:12s}{value}" for key, value in facts.items() if value]
    if card.metrics:
        lines += ["", *_format_metrics(card)]
    if card.text:
        lines += ["", *_format_text(card.text, card.name)]
    return lines


def _format_metrics(card: Card) -> list[str]:
    rows = [("metric", "value", "limit", "")]
    for name, metric in card.metrics.items():
        limit = "" if metric.threshold is None else f"{metric.relation} {metric.threshold:g}"
        verdict = {True: "kept", False: "MISSED", None: ""}[metric.passed]
        rows.append((name, f"{metric.value:.4g}", limit, verdict))
    head, *lines = _format_table(rows, right=(1,))
    return [click.style(head, bold=True), *lines]


def _format_text(text: str, name: str) -> list[str]:
    """The Markdown as it is, headings in bold, without what only a browser shows."""
    text = re.sub(rf"\A# {re.escape(name)}\n+", "", text)
    text = re.sub(r"^!\[[^\n]*\n\n?", "", text, flags=re.MULTILINE)
    text = re.sub(r"^```bibtex\n.*?^```", f"`sfhzoo cite {name}`", text, flags=re.M | re.S)
    return [
        click.style(line, bold=True) if re.match(r"#+ ", line) else line
        for line in text.splitlines()
    ]


@click.command("cite")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_zoo_options
def cite_command(zoo: Zoo, names: tuple[str, ...]) -> None:
    """What to cite when you use NAME, as BibTeX; each work once."""
    works = [work for name in names for work in _split_bibtex(zoo.find(name).citation)]
    click.echo("\n\n".join(dict.fromkeys(works)))


def _split_bibtex(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"^(?=@)", text, flags=re.MULTILINE) if part.strip()]


# ---- pull, path, verify, remove -----------------------------------------------------------------


@click.command("pull")
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All published artifacts.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@_zoo_options
def pull_command(zoo: Zoo, names: tuple[str, ...], everything: bool, quiet: bool) -> None:
    """Fetch artifacts by NAME (or ORG/REPO@REVISION), verify them, print where they are."""
    if everything == bool(names):
        raise click.UsageError("expected one or more names, or --all")
    if everything:
        names = tuple(card.name for card in zoo.all() if card.state == "published")
        if not names:
            click.echo("nothing is published beyond what is bundled", err=True)

    def pull(name: str) -> None:
        card = zoo.find_published(name)
        click.echo(str(disk.pull(card, zoo.cache_dir, zoo.offline, progress=not quiet)))

    _each(names, pull)


@click.command("path")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_zoo_options
def path_command(zoo: Zoo, names: tuple[str, ...]) -> None:
    """Where NAME is on this disk: a directory, or the file of a grid."""
    from sfhzoo.errors import NotCached
    from sfhzoo.zoo.cards import explain_missing

    def show(name: str) -> None:
        place = disk.find_on_disk(name, zoo.cache_dir)
        if place is None:
            raise NotCached(explain_missing(zoo.find(name)))
        click.echo(str(place))

    _each(names, show)


@click.command("verify")
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print {name: [faults]}.")
@_zoo_options
def verify_command(zoo: Zoo, names: tuple[str, ...], as_json: bool) -> None:
    """Compare artifacts on this disk with their sha256: NAMEs, or all that are there.

    A NAME may also be the directory of an artifact. Exit code 1 when something is wrong.
    """
    faults = {name: _find_faults(name, zoo) for name in names or _names_on_disk(zoo)}
    if as_json:
        click.echo(json.dumps(faults, indent=1))
    for name, found in ({} if as_json else faults).items():
        click.echo("\n        ".join([f"{'FAILED' if found else 'ok':8s}{name}", *found]))
    click.get_current_context().exit(1 if any(faults.values()) else 0)


def _names_on_disk(zoo: Zoo) -> list[str]:
    bundled = [card.name for card in zoo.packaged if card.bundled]
    return [*bundled, *(name for name in zoo.pulled if name not in bundled)]


def _find_faults(name: str, zoo: Zoo) -> list[str]:
    directory = Path(name)
    if not (directory / "manifest.json").is_file():
        return disk.find_faults(zoo.find(name), zoo.cache_dir)
    from sfhzoo.zoo.artifacts import verify

    try:
        verify(directory)
    except SfhzooError as e:
        return [str(e)]
    return []


@click.command("remove")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_zoo_options
def remove_command(zoo: Zoo, names: tuple[str, ...]) -> None:
    """Delete pulled artifacts from this disk."""

    def remove(name: str) -> None:
        freed = disk.remove(zoo.find(name), zoo.cache_dir)
        click.echo(f"removed {name}, {_megabytes(freed)} freed", err=True)

    _each(names, remove)


# ---- publish ------------------------------------------------------------------------------------


@click.command("publish")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repo", required=True, metavar="ORG/NAME", help="Hub repository, made if absent.")
@click.option(
    "--metrics",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The metrics.json of `validate` or `prior evaluate` [default: the one in DIRECTORY].",
)
@click.option("--force", is_flag=True, help="Also below the thresholds; the artifact says so.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option(
    "--catalogue",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Add the entry to this catalogue.json.",
)
@click.option("--quiet", is_flag=True, help="No progress bar.")
def publish_command(
    directory: Path,
    repo: str,
    metrics: Path | None,
    force: bool,
    private: bool,
    catalogue: Path | None,
    quiet: bool,
) -> None:
    """Publish the artifact in DIRECTORY on the Hub: one commit, one tag, then pulled and verified.

    Prints its entry for a catalogue. Refuses what does not load, has no whole card, or misses the
    thresholds of its metrics. The token comes from `hf auth login`.
    """
    from sfhzoo.zoo.publish import add_entry, publish

    card = publish(
        directory, repo, metrics=metrics, force=force, private=private, progress=not quiet
    )
    if catalogue:
        add_entry(catalogue, card)
    click.echo(json.dumps(card_to_dict(card), indent=1, ensure_ascii=False))
