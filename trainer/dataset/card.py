"""card.html: what a person should know of a dataset before anything is trained on it."""

from pathlib import Path

from trainer.dataset.manifest import Manifest


def render(folder: Path, manifest: Manifest) -> str:
    return "<!doctype html>"
