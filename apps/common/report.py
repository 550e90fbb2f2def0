"""Self-contained HTML reports: pictures are embedded, nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import inspect
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader

from apps.common.domain import Domain, load
from domains.common.figures import WARNINGS, Picture
from domains.common.intervals import Estimate
from domains.common.writing import write_whole

if TYPE_CHECKING:  # reports of commands that train nothing need no Lightning
    from lightning import LightningDataModule

    from domains.common.callbacks import PredictionTable


def write_test_report(
    domain: Domain, directory: Path, table: PredictionTable, data: LightningDataModule, settings: str, protocol: str
) -> Path:
    """Write report.html of a test: metrics and how they were measured, tables, pictures, data card, configuration."""
    card = getattr(data, "card", {})
    pictures: Sequence[Picture] = _made(domain.figures, table, card) if domain.figures else []
    tables = _made(domain.tables, table, card) if domain.tables else {}
    path = write_report(
        directory / "report.html",
        title=f"{domain.name}: test on {card.get('name', 'data')}",
        metrics=table.metrics,
        tables=tables,
        pictures=pictures,
        card=card,
        settings=settings,
        protocol=protocol,
    )
    for name, estimate in table.metrics.items():
        known = not (math.isnan(estimate.low) or math.isnan(estimate.high))
        interval = f"[{estimate.low:.5f}, {estimate.high:.5f}]" if known else "no interval"
        print(f"{name:32} {estimate.value:.5f}  {interval}")
    undefined = [name for name, estimate in table.metrics.items() if math.isnan(estimate.value)]
    if undefined:
        print(f"undefined on this split, where a class may be missing: {', '.join(undefined)}")
    for row in tables.get(WARNINGS, ()):
        print(f"warning: {row['warning']}")
    print(f"report: {path}")
    return path


def _made(reference: str, table: PredictionTable, card: Mapping[str, Any]) -> Any:
    """Call what makes a part of the report; some look at `dataset.json`, too."""
    function = load(reference)
    more = {"card": card} if "card" in inspect.signature(function).parameters else {}
    return function(table.frame, table.metrics, **more)


def write_report(
    path: Path,
    *,
    title: str,
    metrics: Mapping[str, Estimate] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    pictures: Sequence[Picture] = (),
    card: Mapping[str, Any] | None = None,
    settings: str = "",
    protocol: str = "",
) -> Path:
    """Write one HTML file.

    Args:
        path: where.
        title: heading.
        metrics: with intervals.
        tables: heading -> rows, each a mapping column -> value.
        pictures: drawn in order.
        card: `dataset.json` of the data.
        settings: configuration of the run, YAML.
        protocol: how the metrics were measured.

    Returns:
        The path.
    """
    environment = Environment(loader=PackageLoader("apps.common"), autoescape=True, trim_blocks=True)
    html = environment.get_template("report.html.j2").render(
        title=title,
        metrics=metrics or {},
        tables=tables or {},
        pictures=[{"title": p.title, "caption": p.caption, "data": _embed(p)} for p in pictures],
        card=_data_rows(card) if card else [],
        settings=settings,
        protocol=protocol,
    )
    write_whole(path, html.encode())
    return path


def _data_rows(card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the report says of the data, from `dataset.json`."""
    rule, group, rejects = card.get("split_rule", {}), card.get("group"), card.get("rejects", {})
    ratios = " : ".join(f"{ratio:g}" for ratio in rule.get("ratios") or ())
    rows = [("name", str(card.get("name"))), ("licence", str(card.get("licence")))]
    splits, fold = card.get("splits", {}), card.get("used", {}).get("fold")
    if fold is None:
        rows += [(split, f"{entry['rows']:,} rows") for split, entry in splits.items()]
    else:  # of cross-validation, in the place of the split
        total = sum(entry["rows"] for entry in splits.values())
        rows.append(("fold", f"{fold} of {card.get('folds')}, of {total:,} rows; see folds/splits_{fold}.csv"))
    seed = "" if rule.get("seed") is None else f", seed {rule['seed']}"
    rows.append(("split by", f"{rule.get('kind', 'unknown')} {ratios}".strip() + seed))
    if group:
        both = group.get("groups_on_two_sides")
        apart = "each on one side only" if group.get("kept_apart") else f"{both or 'some'} are on several sides"
        rows.append(("independent unit", f"{group['name']} ({apart})"))
    else:
        rows.append(("independent unit", "row (the data name no group)"))
    rows.append(("rejected", f"{rejects.get('count', 0):,} records ({rejects.get('share', 0):.3%})"))
    for source in card.get("sources", []):
        kind = "sha256" if "sha256" in source else "sampled_sha256"  # of large files a sample is hashed
        rows.append(("source", f"{source['path']}, {source['bytes']:,} bytes, {kind} {source.get(kind, 'unknown')}"))
    return rows


def _embed(picture: Picture) -> str:
    buffer = io.BytesIO()
    picture.figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode()
