"""``spice-select proxy-check``: may this small model choose rows for that large one?"""

from __future__ import annotations

from typing import Annotated

import typer

from spice_select.cli import options as o
from spice_select.cli.console import ConsoleReporter, say

Proxy = Annotated[str | None, typer.Option("--proxy", "-m", help="Model that would choose: folder or Hub id.")]
Target = Annotated[str, typer.Option("--target", "-t", help="Model that would be trained on the picks.")]
Sample = Annotated[int, typer.Option("--sample", help="Rows to compare, drawn at random.")]
Budget = Annotated[str, typer.Option("--budget", "-b", help="Rows (12) or share (10%) of the sample to choose.")]


def proxy_check(
    data: o.Data = None,
    proxy: Proxy = None,
    target: Target = "",
    sample: Sample = 128,
    budget: Budget = "10%",
    config: o.Config = None,
    overrides: o.Set = None,
    preset: o.Preset = None,
    seed: o.Seed = None,
    limit: o.Limit = None,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare the gradients of two models on the same rows, and say whether the one may choose for the other.

    Takes a proxy, the target that is to be trained, and rows; prints correlations, the overlap of what each would
    choose, each beside chance, and a verdict: trust, with care, or do not trust. Nothing is written.
    """
    from spice_select.proxy_check import check_proxy

    settings = o.settings(
        config=config,
        overrides=overrides,
        preset=preset,
        seed=seed,
        data__sources=tuple(data) if data else None,
        data__limit=limit,
        model__name=proxy,
    )
    with ConsoleReporter(quiet=quiet or as_json) as reporter:
        found = check_proxy(settings, target, reporter, sample=sample, budget=budget)
    if as_json:
        say(found.model_dump_json())
        return
    for line in found.describe():
        say(line)
