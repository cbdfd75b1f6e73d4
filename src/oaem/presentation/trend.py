"""What a sweep of rho says in words, each computed from its numbers: does the ratio grow, where is it above one.

A ratio is greedy over OA-EM of one seed; several seeds are averaged as logarithms (`spread.ratio_spread`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from oaem.presentation.spread import Spread, ratio_spread

Ratios = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Rung:
    """One geometry of a sweep: what it is called, its bits a weight, layer errors, and ratios by stage and text."""

    name: str
    code_bits: float
    true_bits: float
    errors: Mapping[str, float]
    ratios: Mapping[tuple[str, str], Ratios]


class Trend:
    """A sweep from its smallest rho upwards; every rung has every ratio that is asked for."""

    def __init__(self, rungs: Sequence[Rung]) -> None:
        self.rungs = tuple(rungs)

    def spreads(self, stage: str, text: str) -> list[Spread]:
        """Mean ratio and interval of each rung."""
        return [ratio_spread(list(rung.ratios[stage, text].values())) for rung in self.rungs]

    def growing(self, stage: str, text: str) -> int:
        """At how many steps from one rung to the next the mean ratio grows."""
        return _growing([over.mean for over in self.spreads(stage, text)])

    def growth(self, stage: str, text: str) -> str:
        """The mean ratios, at how many steps they grow, where they are largest, and the same seed by seed."""
        means = [over.mean for over in self.spreads(stage, text)]
        shared = sorted(set.intersection(*(set(rung.ratios[stage, text]) for rung in self.rungs)))
        by_seed = [_growing([rung.ratios[stage, text][seed] for rung in self.rungs]) for seed in shared]
        words = f"{', '.join(f'{mean:.3f}' for mean in means)}, {_steps(_growing(means), len(means) - 1)}"
        if _growing(means) != len(means) - 1:
            words += f" and is largest at {self.rungs[means.index(max(means))].name}"
        seeds = ", ".join(f"{grown} with seed {seed}" for seed, grown in zip(shared, by_seed, strict=True))
        return f"{words} (by seed: {seeds})"

    def growing_texts(self, stage: str, texts: Sequence[str]) -> str:
        """On how many texts the mean ratio grows at every step."""
        whole = sum(self.growing(stage, text) == len(self.rungs) - 1 for text in texts)
        return _of(whole, len(texts), "text")

    def sides(self, stage: str, text: str) -> str:
        """At which rungs the interval lies above 1, below it, or holds it."""
        spreads = self.spreads(stage, text)
        tests: dict[str, Callable[[float, float], bool]] = {
            "above 1 at": lambda low, high: low > 1,
            "below 1 at": lambda low, high: high < 1,
            "holds 1 at": lambda low, high: low <= 1 <= high,
        }
        parts = []
        for words, test in tests.items():
            names = [
                rung.name
                for rung, over in zip(self.rungs, spreads, strict=True)
                if over.low is not None and over.high is not None and test(over.low, over.high)
            ]
            if names:
                parts.append(f"{words} {_listed(names)}")
        return ", ".join(parts)

    def wins(self, stage: str, texts: Sequence[str]) -> str:
        """In how many comparisons of a stage OA-EM has the lower mean perplexity, and in how many with every seed."""
        found = [rung.ratios[stage, text] for rung in self.rungs for text in texts]
        mean = sum(ratio_spread(list(ratios.values())).mean > 1 for ratios in found)
        every = sum(all(ratio > 1 for ratio in ratios.values()) for ratios in found)
        return f"{_of(mean, len(found), 'comparison')}, with every seed in {every}"

    def ends(self, stage: str, text: str) -> Spread:
        """The ratio at the largest rho over that at the smallest, paired by seed."""
        first, last = (rung.ratios[stage, text] for rung in (self.rungs[0], self.rungs[-1]))
        return ratio_spread([last[seed] / first[seed] for seed in sorted(first) if seed in last])

    def heavy(self) -> list[Rung]:
        """Rungs whose codebooks and scales take more bits than their codes."""
        return [rung for rung in self.rungs if rung.true_bits > 2 * rung.code_bits]

    def light_bits(self) -> str:
        """The true bits of all other rungs, smallest to largest."""
        bits = [rung.true_bits for rung in self.rungs if rung not in self.heavy()]
        return f"{min(bits):.2f} to {max(bits):.2f}"

    def lower_errors(self) -> str:
        """At how many rungs the layers' mean relative error is lower with OA-EM."""
        lower = sum(rung.errors["oaem"] < rung.errors["greedy"] for rung in self.rungs)
        return _of(lower, len(self.rungs), "geometry")


def _growing(values: Sequence[float]) -> int:
    return sum(later > earlier for earlier, later in pairwise(values))


def _steps(grown: int, steps: int) -> str:
    if grown in (0, steps):
        return f"{'grows' if grown else 'falls'} at each of {steps} steps"
    return f"grows at {grown} of {steps} steps"


def _of(count: int, whole: int, noun: str) -> str:
    many = {"geometry": "geometries"}.get(noun, f"{noun}s")
    return f"{count} of {whole} {noun if whole == 1 else many}"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
