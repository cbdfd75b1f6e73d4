"""Calls to the Hugging Face hub whose every failure a user can mend becomes one clear message."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from oaem.errors import UserError
from oaem.runtime.atomic import is_full_disk

T = TypeVar("T")
TOKEN = "HF_TOKEN"  # noqa: S105 - the name of the variable


def call_hub(function: Callable[..., T], repo: str, gated: bool = False, **arguments: Any) -> T:
    """`function(repo_id=repo, …)` with the token of the environment, or none; UserError if the hub does not deliver.

    Only the variable HF_TOKEN is looked at, never a token stored on the machine. It goes into no message and no log.
    """
    token = os.environ.get(TOKEN, "").strip() or None
    if gated and token is None:
        raise UserError(f"{repo}: {_locked(repo)}")
    try:
        return function(repo_id=repo, token=token or False, **arguments)
    except Exception as error:
        reason = _reason(error, repo, token, arguments)
        if reason is None:
            raise
        raise UserError(f"{repo}: {reason}") from None


def _reason(error: BaseException, repo: str, token: str | None, asked: dict[str, Any]) -> str | None:
    """What went wrong and what to do about it; None if it is no fault of the hub, the network or the disk."""
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, errors.HfHubHTTPError):
        # The hub did answer; its client looked in the cache after that, and found nothing.
        error = error.__cause__
    if type(error) is ValueError and error.__cause__ is not None:
        # A file was to be fetched anew in spite of the cache; the client names the reason behind it.
        error = error.__cause__
    if isinstance(error, errors.GatedRepoError):
        return _locked(repo)
    if isinstance(error, errors.RevisionNotFoundError):
        return f"has no revision {asked.get('revision')!r} on the hub; set `revision` to one of its commits."
    if isinstance(error, errors.HfHubHTTPError) and _status(error) in (401, 403):
        return _refused(token)
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"no such repository on the hub, or a private one that needs a token in {TOKEN}; check its name."
    if isinstance(error, errors.LocalEntryNotFoundError) or _is_network(error):
        return (
            f"not whole on this machine, and the hub cannot be reached ({_first_line(error, token)}). Check the "
            "network and HF_ENDPOINT, unset HF_HUB_OFFLINE, or fetch the files elsewhere and use `source: folder`."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"has no file {asked.get('filename')!r} at revision {asked.get('revision')!r}; check both."
    if isinstance(error, errors.HfHubHTTPError | errors.HFValidationError):
        return f"the hub answered with an error: {_first_line(error, token)} Try again later."
    if is_full_disk(error) or (isinstance(error, OSError) and error.errno is not None):
        return f"cannot be stored ({_first_line(error, token)}); check the space and the rights of HF_HOME."
    if isinstance(error, OSError | RuntimeError):  # a RuntimeError is all that hf_xet, the fast transfer, raises
        return (
            f"the download broke off ({_first_line(error, token)}). Run the same command again: files that are whole "
            "are kept."
        )
    return None


def _is_network(error: BaseException) -> bool:
    """Connection faults; the HTTP clients of the hub's versions differ, and so do the modules of their exceptions."""
    from huggingface_hub.errors import HfHubHTTPError

    module = type(error).__module__.split(".")[0]
    foreign = module.startswith(("http", "requests", "urllib3")) and not isinstance(error, HfHubHTTPError)
    return foreign or isinstance(error, ConnectionError | TimeoutError)


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _locked(repo: str) -> str:
    return (
        f"is gated. Accept its licence at https://huggingface.co/{repo} with your account, create a read token at "
        f"https://huggingface.co/settings/tokens, then `export {TOKEN}=…` and run the same command again."
    )


def _refused(token: str | None) -> str:
    if token is None:
        return (
            f"no such repository on the hub, or one that refuses access without a token; check its name, or "
            f"`export {TOKEN}=…` and run the same command again."
        )
    return (
        f"the hub refuses the token in {TOKEN}: it is invalid, has expired or may not read this repository. Create a "
        "new read token at https://huggingface.co/settings/tokens, or unset the variable for an open repository."
    )


def _first_line(error: BaseException, token: str | None) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text.replace(token, "…") if token else text
