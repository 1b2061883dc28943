"""``mlx-lens-tui check-sae``: does an SAE fit the model it is put on?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .output import print_json, say
from .sources import open_model, open_sae, read_text


def check(text: str, *, model: str, sae: str, as_json: bool) -> None:
    """Measure and print; the exit status is 1 if the SAE does not fit where it says it belongs."""
    from lens_tui.worker.fitting import FIT_TEXT, check_sae

    words = read_text(text) if text else FIT_TEXT
    with open_model(model) as lens:
        opened = open_sae(sae, model)
        report = check_sae(lens, opened, words)
    facts = {
        "model": lens.info.name,
        "sae": opened.info.name,
        "sae_id": opened.info.id,
        "architecture": opened.info.architecture,
        "format": opened.info.format,
        **asdict(report),
        "fits": report.fits,
        "provenance": dict(opened.info.provenance),
    }
    print_json(facts) if as_json else _print(facts)
    if not report.fits:
        raise SystemExit(1)


def _print(facts: dict[str, Any]) -> None:
    say(f"{facts['sentence']}")
    say(f"{'layer':>6}  {'site':<16}{'L0':>8}{'FVU':>8}")
    for row in facts["rows"]:
        layer, site = row["place"]
        mark = "declared" if row["place"] == facts["declared"] else "better" if row["place"] == facts["better"] else ""
        fvu = "-" if row["fvu"] is None else f"{row['fvu']:.3f}"
        say(f"{layer:>6}  {site:<16}{row['l0']:>8.1f}{fvu:>8}  {mark}".rstrip())
    declared = [
        f"{name} {value:.3g}"
        for name, value in (("L0", facts["declared_l0"]), ("FVU", facts["declared_fvu"]))
        if value is not None
    ]
    say(f"its maker declares {', '.join(declared) if declared else 'neither L0 nor FVU'}")
