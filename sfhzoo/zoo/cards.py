"""Cards: what an artifact is, how it was made, how good it is, and where it is published.

The card of a prior or posterior network is a README.md as the Hub shows it: YAML front matter with
the Hub's keys (license, library_name, tags, datasets, model-index) and a block of ours, then the
text, with the citation in a ```bibtex block. The card of a grid is the table [zoo] of its recipe.

    sfhzoo:
      name: NAME-vN       kind: prior | posterior-network | grid
      origin: ...         the simulation of a prior, the engine of a grid
      summary: ...        one line
      recipe: ...         the commands that make it
      needs: ...          what one must have to run them, where nothing is published
      nearest: [...]      the closest names, for those who cannot wait
      source:             the published files: repo, revision (40 hex), files {name: sha256, size}

A published name never changes: what gets better gets the next version.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

from sfhzoo.errors import ArtifactError
from sfhzoo.zoo.fields import Fields

Kind = Literal["prior", "posterior-network", "grid"]
State = Literal["bundled", "published", "recipe only"]
Relation = Literal["<=", ">="]

KINDS = ("prior", "posterior-network", "grid")
LIBRARY = "sfhzoo"
_MAX_BYTES = 2**20
_MAX_FRONT = 2**16
"""YAML takes its time: what is larger is no card."""
_NAME = re.compile(r"[a-z0-9]+(-{1,2}[a-z0-9]+)*-v[1-9][0-9]{0,3}")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9][\w.-]{0,200}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_BIBTEX = re.compile(r"^```bibtex\n(.*?)^```", re.DOTALL | re.MULTILINE)
_MODEL_INDEX = re.compile(r"^model-index:.*\n(?:[ \t-].*\n|\n)*", re.MULTILINE)


@dataclass(frozen=True)
class FileRecord:
    """What a file must be."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Source:
    """Where an artifact is published: files of one commit of a Hub repository."""

    repo: str
    revision: str
    files: Mapping[str, FileRecord]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files.values())


@dataclass(frozen=True)
class Metric:
    """A measured number and the limit it had to keep."""

    value: float
    threshold: float | None = None
    relation: Relation = "<="

    @property
    def passed(self) -> bool | None:
        """Whether the limit is kept; None where there is none."""
        if self.threshold is None:
            return None
        low, high = self.value, self.threshold
        return low <= high if self.relation == "<=" else low >= high


@dataclass(frozen=True)
class Card:
    """A validated card; `identity` is the sha256 of weights and config, or of a grid's file."""

    name: str
    kind: Kind
    origin: str
    summary: str
    license: str
    citation: str
    recipe: str | None = None
    needs: str | None = None
    nearest: tuple[str, ...] = ()
    source: Source | None = None
    identity: str | None = None
    bundled: bool = False
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    text: str | None = None

    @property
    def version(self) -> int:
        """The N of `<name>-v<N>`."""
        return int(self.name.rpartition("-v")[2])

    @property
    def state(self) -> State:
        """Whether its files are in the package, on the Hub, or still to be made."""
        if self.bundled:
            return "bundled"
        return "published" if self.source else "recipe only"


OWN_KEYS = (
    "name", "kind", "origin", "summary", "recipe", "needs", "nearest", "source", "identity",
)  # fmt: skip
"""Of the block `sfhzoo` and the table [zoo]; the rest of a card stands in other places."""


def is_name(text: str) -> bool:
    """Whether `text` has the form of an artifact's name, `<name>-v<N>`."""
    return _NAME.fullmatch(text) is not None


def is_repo(text: str) -> bool:
    """Whether `text` has the form of a Hub repository, `org/name`."""
    return _REPO.fullmatch(text) is not None


def explain_missing(card: Card) -> str:
    """Why an artifact is not on this disk, and what to do about it."""
    if card.bundled:
        return f"{card.name} belongs to the package but is missing; reinstall sfhzoo"
    if card.source:
        return f"{card.name} is not on this disk; run: sfhzoo pull {card.name}"
    needs = f" (it needs {card.needs})" if card.needs else ""
    commands = " && ".join(line for line in (card.recipe or "").splitlines() if line.strip())
    nearest = f". The nearest to it: {', '.join(card.nearest)}" if card.nearest else ""
    return (
        f"{card.name} is a recipe: its files are not published{needs}. To make it: "
        f"{commands}; `sfhzoo show {card.name}` tells more{nearest}"
    )


def card_to_dict(card: Card) -> dict[str, Any]:
    """The card as JSON can hold it; `card_from_dict` reads it back."""
    return {**asdict(card), "nearest": list(card.nearest)}


def card_from_dict(content: Mapping[str, Any], where: str) -> Card:
    """A card from a catalogue's entry; ArtifactError names `where`, the key, what it expects."""
    return _card(Fields(content, where))


def _card(given: Fields) -> Card:
    given.only([f.name for f in fields(Card)])
    kind = given.content.get("kind")
    if kind not in KINDS:
        raise given.error("kind", " | ".join(KINDS))
    bundled = given.content.get("bundled", False)
    if not isinstance(bundled, bool):
        raise given.error("bundled", "true or false")
    identity = given.content.get("identity")
    if identity is not None:
        given.matching("identity", _SHA256, "a sha256 of 64 hexadecimal digits")
    nearest = given.texts("nearest", "a list of names")
    if not all(map(is_name, nearest)):
        raise given.error("nearest", "a list of names <name>-v<N>")
    return Card(
        name=given.matching("name", _NAME, "<name>-v<N>: lower case, digits and hyphens"),
        kind=cast(Kind, kind),
        origin=given.text("origin", "the simulation of a prior or engine of a grid", True),
        summary=given.text("summary", one_line=True),
        license=given.matching("license", _LICENSE, "a license identifier such as bsd-3-clause"),
        citation=_citation(given),
        recipe=given.maybe_text("recipe"),
        needs=given.maybe_text("needs", one_line=True),
        nearest=nearest,
        source=_source(given),
        identity=identity,
        bundled=bundled,
        metrics=_metrics(given),
        text=given.maybe_text("text"),
    )


def _citation(given: Fields) -> str:
    citation = given.text("citation", "BibTeX")
    if not re.match(r"@\w+\s*\{", citation):
        raise given.error("citation", "BibTeX that starts with @")
    return citation


def _source(given: Fields) -> Source | None:
    table = given.table("source", "a table of repo, revision and files")
    if table is None:
        return None
    table.only([f.name for f in fields(Source)])
    files = table.table("files", "a table of file names")
    if not files or not files.content:
        raise table.error("files", "a table of file names with sha256 and size")
    return Source(
        table.matching("repo", _REPO, "org/name of a Hub repository"),
        table.matching("revision", _COMMIT, "a commit of 40 hexadecimal digits, not a branch"),
        {name: _file_record(files, name) for name in files.content},
    )


def _file_record(files: Fields, name: str) -> FileRecord:
    record = files.table(name, "a table of sha256 and size")
    if not _FILE.fullmatch(name) or record is None:
        raise files.error(name, "a plain file name with a table of sha256 and size")
    record.only([f.name for f in fields(FileRecord)])
    size = record.content.get("size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise record.error("size", "a number of bytes")
    return FileRecord(
        record.matching("sha256", _SHA256, "a sha256 of 64 hexadecimal digits"), size
    )


def _metrics(given: Fields) -> dict[str, Metric]:
    table = given.table("metrics", "a table of metrics")
    return {name: _metric(table, name) for name in table.content} if table else {}


def _metric(metrics: Fields, name: str) -> Metric:
    entry = metrics.table(name, "a table of value, threshold, relation")
    value = entry.maybe_number("value") if entry else None
    if entry is None or value is None:
        raise metrics.error(name, "a table with a value")
    relation = entry.content.get("relation", "<=")
    if relation not in ("<=", ">="):
        raise entry.error("relation", "<= or >=")
    return Metric(value, entry.maybe_number("threshold"), cast(Relation, relation))


def metrics_of(content: Mapping[str, Any], where: str = "metrics.json") -> dict[str, Metric]:
    """The metrics of a metrics.json, as `prior evaluate` or `validate` write it."""
    checks = content.get("checks")
    if isinstance(checks, list) and all(isinstance(c, Mapping) for c in checks):
        rows = {str(c.get("name")): {**c, "threshold": c.get("limit")} for c in checks}
        return _metrics(Fields({"metrics": rows}, where))
    return _metrics(Fields(content, where))


# ---- README.md ----------------------------------------------------------------------------------


def read_card(path: str | Path) -> Card:
    """The card of a README.md or of a grid's recipe (.toml); ArtifactError where it is none."""
    path = Path(path)
    try:
        size, text = path.stat().st_size, ""
        if size <= _MAX_BYTES:
            text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ArtifactError(f"expected a card at {path}: {e}") from e
    if size > _MAX_BYTES:
        raise ArtifactError(f"{path}: expected a card of at most 1 MiB, got {size} bytes")
    return _parse_recipe(text, str(path)) if path.suffix == ".toml" else parse_card(text, path)


def _split(text: str, where: str | Path) -> tuple[str, str]:
    """(front matter, body)."""
    head, mark, rest = text.partition("---\n")
    front, end, body = rest.partition("\n---\n")
    if head or not mark or not end:
        raise ArtifactError(f"{where}: expected YAML front matter between two lines of ---")
    if len(front) > _MAX_FRONT:
        raise ArtifactError(f"{where}: expected front matter of at most 64 KiB, got {len(front)}")
    return f"{front}\n", body


def parse_card(text: str, where: str | Path) -> Card:
    """The card in the text of a README.md; `where` names it in messages."""
    import yaml

    front, body = _split(text, where)
    try:
        content = yaml.safe_load(front)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise ArtifactError(f"{where}: expected YAML in the front matter: {e}") from e
    if not isinstance(content, Mapping):
        raise ArtifactError(f"{where}: expected a table in the front matter, got {content!r:.80}")
    hub = Fields(content, str(where))
    own = hub.table(LIBRARY, "our block")
    if own is None:
        raise hub.error(LIBRARY, f"a block with {', '.join(OWN_KEYS[:4])}")
    own.only(OWN_KEYS)
    if content.get("library_name") != LIBRARY:
        raise hub.error("library_name", LIBRARY)
    for key in ("tags", "datasets"):
        if not hub.texts(key, "a list of words"):
            raise hub.error(key, "a list of words")
    card = {
        **own.content,
        "license": content.get("license"),
        "citation": "\n".join(_BIBTEX.findall(body)).strip() or None,
        "metrics": _from_model_index(hub),
        "text": body.strip() or None,
    }
    labels = {
        "license": "license",
        "citation": "the block ```bibtex",
        "metrics": "model-index",
        "text": "the text",
    }
    return _card(Fields(card, str(where), f"{LIBRARY}.", labels))


def _from_model_index(hub: Fields) -> dict[str, Any]:
    """{metric: {value, threshold, relation}} of all results."""
    found: dict[str, Any] = {}
    try:
        for model in hub.content.get("model-index") or []:
            for result in model["results"]:
                for metric in result["metrics"]:
                    limit = metric.get("args") or {}
                    found[str(metric["type"])] = {"value": metric["value"], **limit}
    except (KeyError, TypeError, AttributeError) as e:
        raise hub.error("model-index", "the Hub's list of name, results, metrics") from e
    return found


def with_metrics(text: str, metrics: Mapping[str, Metric]) -> str:
    """The README `text` with `metrics`, of the last of its datasets, as its model-index.

    The rest stays as it was written.
    """
    import yaml

    rows: list[dict[str, Any]] = []
    for name, metric in metrics.items():
        row: dict[str, Any] = {"type": name, "value": _round(metric)}
        if metric.threshold is not None:
            row["args"] = {"threshold": metric.threshold, "relation": metric.relation}
        rows.append(row)
    front, body = _split(text, "README.md")
    card, content = parse_card(text, "README.md"), yaml.safe_load(front)
    dataset = content["datasets"][-1]
    result = {
        "task": {"type": "other", "name": card.kind},
        "dataset": {"type": dataset, "name": dataset},
        "metrics": rows,
    }
    block = yaml.safe_dump(
        {"model-index": [{"name": card.name, "results": [result]}]},
        sort_keys=False, allow_unicode=True, width=95,
    )  # fmt: skip
    return f"---\n{_MODEL_INDEX.sub('', front)}{block if rows else ''}---\n{body}"


def _round(metric: Metric) -> float:
    """Four digits, unless that would change the verdict."""
    short = float(f"{metric.value:.4g}")
    same = Metric(short, metric.threshold, metric.relation).passed == metric.passed
    return short if same else metric.value


# ---- grids/<name>.toml --------------------------------------------------------------------------


def _parse_recipe(text: str, where: str) -> Card:
    """The card in a grid's recipe: its table [zoo], and what the recipe says already."""
    try:
        recipe = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ArtifactError(f"{where}: expected TOML: {e}") from e
    root = Fields(recipe, where)
    own = root.table("zoo", "a table with summary, license and citation")
    if own is None:
        raise root.error("zoo", "a table with summary, license and citation")
    own.only([*OWN_KEYS, "license", "citation"])
    card = {
        "kind": "grid",
        "name": recipe.get("name"),
        "origin": recipe.get("engine"),
        "recipe": f"sfhzoo grid build grids/{Path(where).name}",
        **own.content,
        "text": _describe(recipe.get("provenance")),
    }
    return _card(Fields(card, where, "zoo.", {"name": "name", "text": "provenance"}))


def _describe(provenance: Any) -> str | None:
    """The recipe's provenance as Markdown."""
    if not isinstance(provenance, Mapping) or not provenance:
        return None
    return "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in provenance.items())
