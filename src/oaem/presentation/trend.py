"""What a sweep of rho says in words, each computed from its numbers: does the ratio grow, where is it above one.

A ratio is greedy over OA-EM of one seed; several seeds are averaged as logarithms (`spread.ratio_spread`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from oaem.presentation.spread import Spread, paired_ratios, ratio_spread, slope

Ratios = Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Rung:
    """One geometry of a sweep: its name, bits a weight, layer errors, ratios by stage and text, and mean rho."""

    name: str
    code_bits: float
    true_bits: float
    errors: Mapping[str, float]
    ratios: Mapping[tuple[str, str], Ratios]
    rho: float


@dataclass(frozen=True)
class Tally:
    """Comparisons, each the ratios of a stage and a text by seed, none empty; above 1 the one below (OA-EM) wins."""

    found: Sequence[Ratios]

    @property
    def won(self) -> int:
        """In how many its mean perplexity is lower."""
        return sum(ratio_spread(list(ratios.values())).mean > 1 for ratios in self.found)

    @property
    def words(self) -> str:
        """The same, out of how many, and in how many it is lower with every seed."""
        every = sum(all(ratio > 1 for ratio in ratios.values()) for ratios in self.found)
        return f"{_of(self.won, len(self.found), 'comparison')}, with every seed in {every}"

    @property
    def pairs(self) -> str:
        """The same, pair by pair."""
        single = [ratio for ratios in self.found for ratio in ratios.values()]
        return f"{sum(ratio > 1 for ratio in single)} of {len(single)}"

    @property
    def intervals(self) -> str:
        """Where the intervals lie, of those comparisons that have one."""
        over = [ratio_spread(list(ratios.values())) for ratios in self.found]
        ends = [(each.low, each.high) for each in over if each.low is not None and each.high is not None]
        above, below = sum(low > 1 for low, _ in ends), sum(high < 1 for _, high in ends)
        return f"{above} above 1, {below} below 1 and {len(ends) - above - below} around it"


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

    def steps(self, stage: str, text: str) -> str:
        """At how many steps the ratio grows, in the mean and by seed, and where it is largest if not at the end."""
        means = [over.mean for over in self.spreads(stage, text)]
        shared = sorted(set.intersection(*(set(rung.ratios[stage, text]) for rung in self.rungs)))
        by_seed = [_growing([rung.ratios[stage, text][seed] for rung in self.rungs]) for seed in shared]
        words = f"{_growing(means)} of {len(means) - 1} ({', '.join(map(str, by_seed)) or 'no seed in common'})"
        largest = self.rungs[means.index(max(means))]
        return words if largest is self.rungs[-1] else f"{words}; largest at {largest.name}"

    def growing_texts(self, stage: str, texts: Collection[str]) -> str:
        """On how many texts the mean ratio grows at every step."""
        whole = sum(self.growing(stage, text) == len(self.rungs) - 1 for text in texts)
        return _of(whole, len(texts), "text")

    def above(self, stage: str, text: str) -> str:
        """At which rungs the whole interval lies above 1."""
        return self._where(stage, text, lambda low, high: low > 1)

    def below(self, stage: str, text: str) -> str:
        """At which rungs the whole interval lies below 1."""
        return self._where(stage, text, lambda low, high: high < 1)

    def _where(self, stage: str, text: str, test: Callable[[float, float], bool]) -> str:
        pairs = zip(self.rungs, self.spreads(stage, text), strict=True)
        known = [(rung.name, over.low, over.high) for rung, over in pairs]
        names = [name for name, low, high in known if low is not None and high is not None and test(low, high)]
        return ", ".join(names) or "none"

    def wins(self, stage: str, texts: Collection[str]) -> str:
        """In how many comparisons of a stage OA-EM has the lower mean perplexity, and in how many with every seed."""
        return Tally([rung.ratios[stage, text] for rung in self.rungs for text in texts]).words

    def ends(self, stage: str, text: str) -> Spread:
        """The ratio at the largest rho over that at the smallest, paired by seed."""
        return ratio_spread(list(self.end_ratios(stage, text).values()))

    def end_ratios(self, stage: str, text: str) -> Ratios:
        """The same by seed; empty if the two ends have none in common."""
        first, last = (rung.ratios[stage, text] for rung in (self.rungs[0], self.rungs[-1]))
        return paired_ratios(last, first)

    def tenfold(self, stage: str, text: str) -> Spread:
        """How many times as large the ratio is at ten times the mean rho: one slope of logarithms, a level a seed."""
        points: dict[int, list[tuple[float, float]]] = {}
        for rung in self.rungs:
            for seed, ratio in rung.ratios[stage, text].items():
                points.setdefault(seed, []).append((math.log10(rung.rho), math.log(ratio)))
        return _factor(slope(points))

    def tenfold_of_means(self, stage: str, text: str) -> Spread:
        """The same through the mean of each rung alone, which takes no two seeds of one for independent."""
        means = [over.mean for over in self.spreads(stage, text)]
        points = [(math.log10(rung.rho), math.log(mean)) for rung, mean in zip(self.rungs, means, strict=True)]
        return _factor(slope({0: points}))

    def heavy(self) -> list[Rung]:
        """Rungs whose codebooks and scales take more bits than their codes."""
        return [rung for rung in self.rungs if rung.true_bits > 2 * rung.code_bits]

    def light(self) -> Trend:
        """The sweep without those: there the rate is nearly one also when everything stored is counted."""
        return Trend([rung for rung in self.rungs if rung not in self.heavy()])

    def bits(self) -> str:
        """The smallest and the largest true bits."""
        bits = [rung.true_bits for rung in self.rungs]
        return f"{min(bits):.2f} to {max(bits):.2f}"

    def lower_errors(self) -> str:
        """At how many rungs the layers' mean relative error is lower with OA-EM."""
        lower = sum(rung.errors["oaem"] < rung.errors["greedy"] for rung in self.rungs)
        return _of(lower, len(self.rungs), "geometry")


def interval(over: Spread) -> str:
    """A mean ratio, or difference, with its interval, as pages print it."""
    return f"{over.mean:.3f}" if over.low is None else f"{over.mean:.3f} [{over.low:.3f}, {over.high:.3f}]"


def _factor(over: Spread) -> Spread:
    """What a slope of logarithms multiplies by."""
    low, high = (None if end is None else math.exp(end) for end in (over.low, over.high))
    return Spread(over.n, math.exp(over.mean), None, low, high)


def _growing(values: Sequence[float]) -> int:
    return sum(later > earlier for earlier, later in pairwise(values))


def _of(count: int, whole: int, noun: str) -> str:
    many = {"geometry": "geometries"}.get(noun, f"{noun}s")
    return f"{count} of {whole} {noun if whole == 1 else many}"
