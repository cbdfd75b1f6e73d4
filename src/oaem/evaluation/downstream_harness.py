"""The model as lm-eval calls it; imported only where lm-eval is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.models.huggingface import HFLM

from oaem.runtime.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class HarnessModel(HFLM):
    """lm-eval's own wrapper, with progress and log-probabilities in float32.

    float32, because in bfloat16 the log-probabilities of long answers are rounded to steps of 0.25 and more, and ties
    between answers would decide items.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        progress: Callable[[str, int], Progress] | None,
    ) -> None:
        super().__init__(
            pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32", backend="causal"
        )
        self._make_progress = progress
        self._progress: Progress | None = None

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        if self._make_progress is not None:
            # lm-eval scores answers that share all but their last token in one row.
            rows = {(*context, *answer[:-1]) for _, context, answer in requests}
            self._progress = self._make_progress("zero-shot tasks", len(rows))
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits = super()._model_call(inps, *args, **kwargs)
        if self._progress is not None:
            for _ in range(inps.shape[0]):
                self._progress.step()
        return logits
