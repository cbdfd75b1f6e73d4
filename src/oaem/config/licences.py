"""Models under terms of their own: who fetches one says in the environment that they accept them."""

from __future__ import annotations

import os

from oaem.config.model_source import ModelSource

ACCEPT = "OAEM_ACCEPT"


def licence_refusal(source: ModelSource) -> str:
    """Why the model may not be fetched: its licence is not among those that OAEM_ACCEPT names. Empty if it may."""
    accepted = {name.strip() for name in os.environ.get(ACCEPT, "").split(",")}
    if source.licence is None or source.licence.name in accepted:
        return ""
    return (
        f"{source.label} comes under terms of its own; read them at {source.licence.url} and, if you accept them, "
        f"`export {ACCEPT}={source.licence.name}` and run the same command again."
    )
