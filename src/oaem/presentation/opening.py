"""The report's first lines: what the grid found in a few sentences, and under which setting, in one line."""

from __future__ import annotations

from collections.abc import Sequence

from oaem.config.geometry import Geometry
from oaem.config.schema import Config
from oaem.presentation.claims.values import four_digits
from oaem.presentation.headline import Group, first_subject
from oaem.presentation.spread import ratio_spread
from oaem.presentation.tables.build import Value
from oaem.presentation.tables.cells import Number
from oaem.presentation.view import View, other_budgets, search_label


def setting(config: Config) -> str:
    """Model, geometry, search points, seeds, and whether the budgets are the paper's."""
    view = View(config)
    geometries = list(dict.fromkeys(run.geometry for run in view.runs))
    shapes = [f"{_shape(geometry)} ({geometry.bits_per_parameter:.4g} bpp)" for geometry in geometries]
    points = list(dict.fromkeys(search_label((run.beam_width, run.max_epochs)) for run in view.runs))
    seeds = sorted({run.seed for run in view.runs})
    parts = [
        ", ".join(config.models[key].label for key in view.model_keys),
        " or ".join(shapes),
        " or ".join(points),
        f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"one seed ({seeds[0]})",
        "budgets smaller or other than the paper's" if other_budgets(config.quantization) else "the paper's budgets",
    ]
    return "; ".join(parts) + "."


def sentences(found: Sequence[Group]) -> list[str]:
    """The first rate before and after PV-tuning, another rate or search at its last stage, and all models in one.

    So three at most, and a fourth if the grid has several models.
    """
    if not found:
        return []
    first = found[0]
    own = [group for group in found if group.model == first.model]
    rates = [group for group in own if group.rate != first.rate]
    others = rates or [group for group in own if group.subject != first.subject]
    last = [group for group in others if group.subject == others[0].subject][-1:]
    several = len({group.model for group in found}) > 1
    told = [_sentence(group, first, _place(group, own, several)) for group in (*first_subject(found)[:2], *last)]
    return [text for text in (*told, _across_models(found) if several else "") if text]


def _shape(geometry: Geometry) -> str:
    return f"{geometry.num_codebooks} codebooks of {geometry.nbits} bit over groups of {geometry.group_size}"


def _place(group: Group, own: Sequence[Group], named: bool) -> str:
    """The rate, with the model if there are several, and with its geometry if the model has others of this rate."""
    rate = f"{group.model} at {group.rate}" if named else f"At {group.rate}"
    alone = {each.geometry for each in own if each.rate == group.rate} == {group.geometry}
    return rate if alone else f"{rate} with {_shape(Geometry.parse(group.geometry))}"


def _sentence(group: Group, first: Group, place: str) -> str:
    pairs = [(text, role, values) for text, role, values in group.texts if isinstance(values["ratio"].ours, float)]
    if not pairs:
        return ""
    better = sum(float(values["ratio"].ours or 0) > 1 for _, _, values in pairs)
    text, role, values = pairs[-1]
    winner = "OA-EM" if 2 * better >= len(pairs) else "greedy"
    on = better if winner == "OA-EM" else len(pairs) - better
    point = "" if group.point == first.point else f", {group.point}"
    return (
        f"{place}{point}, {_tuning(group.stage)}, "
        f"{winner} has the lower perplexity on {_all_of(on, len(pairs), 'text')}: on {text} ({role}) "
        f"OA-EM {_range(values['oaem'])}, greedy {_range(values['greedy'])}; {_ratio(values['ratio'])}"
        f"{_excluded([each['ratio'] for _, _, each in pairs])}."
    )


def _across_models(found: Sequence[Group]) -> str:
    """Every model's ratio on the furthest text at the first rate and search, at the last stage that two models have."""
    first = found[0]
    alike = [group for group in found if (group.geometry, group.point) == (first.geometry, first.point)]
    paired = [group for group in alike if isinstance(_furthest_ratio(group), float)]
    for stage in reversed(dict.fromkeys(group.stage for group in paired)):
        shown = {group.model: float(_furthest_ratio(group) or 0) for group in paired if group.stage == stage}
        if len(shown) > 1:
            text, role, _ = first.texts[-1]
            better = sum(ratio > 1 for ratio in shown.values())
            each = ", ".join(f"{ratio:.3g} with {model}" for model, ratio in shown.items())
            return (
                f"From model to model, at {first.rate}, {_tuning(stage)}, on {text} ({role}), OA-EM is better with "
                f"{_all_of(better, len(shown), 'model')}: greedy / OA-EM is {each}."
            )
    return ""


def _furthest_ratio(group: Group) -> Number | None:
    return group.texts[-1][2]["ratio"].ours


def _tuning(stage: str) -> str:
    return stage.replace("PV", "PV-tuning")


def _ratio(value: Value) -> str:
    seeds = ratio_spread(value.numbers)
    if seeds.low is None or seeds.high is None:
        return f"greedy / OA-EM is {seeds.mean:.3g} with one seed"
    return f"greedy / OA-EM is {seeds.mean:.3g} (95 % interval {seeds.low:.3g} to {seeds.high:.3g}, {seeds.n} seeds)"


def _excluded(ratios: Sequence[Value]) -> str:
    """On how many texts the interval says which is better."""
    known = [(value.low, value.high) for value in ratios if value.low is not None and value.high is not None]
    if not known:
        return ""
    sure = sum(low > 1 or high < 1 for low, high in known)
    return f", and the interval excludes 1 on {_all_of(sure, len(ratios), 'text')}"


def _all_of(count: int, whole: int, noun: str) -> str:
    return f"{count} of {whole} {noun}{'s' if whole > 1 else ''}"


def _range(value: Value) -> str:
    ends = dict.fromkeys((four_digits(min(value.numbers)), four_digits(max(value.numbers))))
    return " to ".join(ends)
