"""The gate before the expensive part: does the unquantised model measure what the paper measured?"""

from __future__ import annotations

from collections.abc import Mapping

from oaem.errors import UserError

CAUSES = (
    "Usual causes, most frequent first: another revision or split of the data set; documents joined or cut in another "
    "way; a missing or doubled start token; another window (the paper's is 4096 tokens); c4 mistaken for c4_new; a "
    "fine-tuned variant of the model; weights rounded to another dtype."
)


def check(model: str, measured: Mapping[str, float], expected: Mapping[str, float], tolerance: float) -> None:
    """UserError unless each expected perplexity was measured within the relative `tolerance`."""
    off = [
        f"{dataset}: measured {measured[dataset]:.3f}, expected {value:g} within {tolerance:.1%}"
        for dataset, value in expected.items()
        if abs(measured[dataset] - value) > tolerance * value
    ]
    if off:
        raise UserError(
            f"the unquantised {model} is not what the paper measured, so nothing is quantised.\n  "
            + "\n  ".join(off)
            + f"\n{CAUSES}\nTo go on anyway, set models.{model}.expected_perplexity to {{}}."
        )
