"""From elsewhere to a feature's page: its SAE is loaded, Features shows, and the feature is chosen there."""

from __future__ import annotations

from lens_tui.tui.host import LensHost
from lens_tui.worker.events import Event, JobDone
from lens_tui.worker.jobs import LoadSAE

from .features_screen import FeaturesScreen


def open_feature(lens: LensHost, path: str, feature: int) -> None:
    """Show the page of a feature of the SAE or transcoder at a path."""

    lens.action_show("features")
    screen = lens.get_screen_stack("features")[0]

    def go() -> None:
        if isinstance(screen, FeaturesScreen):
            screen.list.go(feature)
            screen.list.pin()  # the list that comes with the text would go to its first feature

    def take(event: Event) -> None:
        if isinstance(event, JobDone) and not event.stopped:
            screen.call_after_refresh(go)

    sae = lens.store.session.sae_in_use
    if sae is not None and sae.path == path:
        screen.call_after_refresh(go)
    else:
        lens.submit(LoadSAE(path), "page", take)
