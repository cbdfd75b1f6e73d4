"""Perplexity over windows of tokens (section 4.1), without ever holding the logits of a whole window."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from oaem.errors import UserError
from oaem.models.attention import use_fast_attention
from oaem.runtime.progress import Progress

# Float32 logits held at once, in elements: 256 MB.
LOGITS_AT_ONCE = 2**26


@dataclass(frozen=True)
class PerplexityResult:
    """`value` is exp of the mean of `window_losses`, the mean token loss (nats) of each window of `window` tokens."""

    value: float
    window_losses: tuple[float, ...]
    window: int

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.window_losses)

    @property
    def tokens(self) -> int:
        """Number of predicted tokens: every token of a window but its first."""
        return self.windows * (self.window - 1)

    @property
    def stderr(self) -> float | None:
        """Standard error of `value` over windows, to first order; None with a single window."""
        if self.windows < 2:
            return None
        losses = torch.tensor(self.window_losses, dtype=torch.float64)
        return self.value * float(losses.std()) / math.sqrt(self.windows)


@torch.no_grad()
def perplexity(
    model: Any,
    tokens: torch.Tensor,
    batch_size: int,
    device: torch.device | str,
    progress: Progress | None = None,
) -> PerplexityResult:
    """Perplexity of a causal LM on `tokens` [n, L] (integers), each window on its own, `batch_size` at a time.

    L - 1 predictions a window, their losses in float32, averaged over the window in float64, then over windows.
    `progress` gets a step a window. UserError if a window has fewer than two tokens, or one is not in the vocabulary.
    """
    _check(model, tokens)
    model.eval()
    use_fast_attention(model)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    losses: list[float] = []
    for batch in tokens.split(batch_size):
        ids = batch.to(device, torch.long)
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
        for sequence, row in zip(hidden, ids, strict=True):
            losses.append(float(token_losses(sequence[:-1], row[1:], head).double().mean()))
            if progress is not None:
                progress.step()
    return PerplexityResult(math.exp(math.fsum(losses) / len(losses)), tuple(losses), tokens.shape[1])


def token_losses(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Cross-entropy float32 [t] of the logits head(hidden), hidden [t, hidden], against targets [t], chunk by chunk."""
    rows = max(1, LOGITS_AT_ONCE // head.out_features)
    pieces = [
        functional.cross_entropy(head(states).float(), wanted, reduction="none")
        for states, wanted in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(pieces)


def _check(model: Any, tokens: torch.Tensor) -> None:
    if tokens.dim() != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
        raise UserError(
            f"perplexity: expected tokens [windows, at least 2], found {list(tokens.shape)}; use longer windows."
        )
    vocabulary = int(model.get_output_embeddings().weight.shape[0])
    highest = int(tokens.max())
    if highest >= vocabulary or int(tokens.min()) < 0:
        raise UserError(
            f"perplexity: token {highest} is not in the model's vocabulary of {vocabulary}: the tokens were made with "
            "another model's tokenizer; delete them and run the same command again."
        )
