"""`heptad DOMAIN explain`: what a trained model attends to and what its predictions depend on."""

from __future__ import annotations

from collections.abc import Sequence

from apps.common.domain import Domain, load
from apps.common.options import from_run, resolve_configs
from apps.common.report import write_report
from apps.common.run import build
from domains.common.files import fill
from domains.common.hub import network_tensors


def main(domain: Domain, command: str, options: Sequence[str]) -> None:
    """Explain a run; options are those of `test`."""
    asks_help = "--help" in options or "-h" in options
    words = resolve_configs(domain, options) if asks_help else from_run(domain, options)
    cli = build(domain, "test", words, run=False, title=command)
    checkpoint = cli.config["test"].ckpt_path
    if checkpoint is not None:
        fill(cli.model.net, network_tensors(checkpoint), str(checkpoint))
    directory = cli.run_directory
    directory.mkdir(parents=True, exist_ok=True)
    pictures = load(domain.explain)(cli.model, cli.datamodule, directory)
    card = getattr(cli.datamodule, "card", {})
    title = f"{domain.name}: what the model depends on, {card.get('name', 'data')}"
    print(f"report: {write_report(directory / 'explain.html', title=title, pictures=pictures, card=card)}")
