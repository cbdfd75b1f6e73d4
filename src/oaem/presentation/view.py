"""How a grid fills the paper's shapes: which of its models, rates, search points and domains stand where."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from oaem.config.geometry import Geometry
from oaem.config.grid import Run
from oaem.config.schema import Config, PerplexitySet, Quantization
from oaem.config.settings import BlockTuningSettings, LayerSettings
from oaem.errors import UserError

PAPER_MODELS = ("Llama 3B", "Llama 8B", "Qwen 3B")
PAPER_POINTS = ((4, 100), (8, 100), (16, 100), (8, 5))
PAPER_STANDARD = (8, 100)
PAPER_GEOMETRIES = {"low": Geometry(2, 8, 8), "high": Geometry(3, 8, 8)}
INIT_LABELS = {"greedy": "Greedy", "oaem": "OA-EM"}
UNQUANTISED = "FP16"
# The accuracy that the paper reports for each task (section 4), and its column in Tables 7 to 15.
TASK_METRICS = {
    "arc_challenge": ("arc_c", "acc_norm"),
    "arc_easy": ("arc_e", "acc_norm"),
    "hellaswag": ("hellaswag", "acc_norm"),
    "lambada_openai": ("lambada_acc", "acc"),
    "piqa": ("piqa", "acc_norm"),
    "winogrande": ("winogrande", "acc"),
}
SWEEP = 3  # geometries of one rate that make a sweep of rho
ORDINALS = ("first", "second", "third", "fourth")

Point = tuple[int, int]


@dataclass(frozen=True)
class Slot:
    """A model at a rate and a search point, as a table addresses it; `absent` says why the grid has none."""

    model: str = ""
    label: str = ""
    geometry: Geometry | None = None
    point: Point | None = None
    absent: str = ""

    @property
    def rate(self) -> str:
        """The nominal rate in the paper's spelling."""
        return f"{self.geometry.bits_per_parameter:.4g} bpp" if self.geometry else ""

    @property
    def subject(self) -> str:
        """Model, rate, geometry and search point in words, for a table's heading."""
        if self.absent or self.geometry is None:
            return self.absent[:1].upper() + self.absent[1:] if self.absent else ""
        text = f"{self.label} at {self.rate} ({self.geometry.num_codebooks} codebooks of {self.geometry.nbits} bit, "
        text += f"groups of {self.geometry.group_size})"
        return text if self.point is None else f"{text}, {search_label(self.point)}"


def search_label(point: Point) -> str:
    """A search point as tables and figures print it."""
    return f"b={point[0]}, e={point[1]}"


class View:
    """A configuration read as the paper's tables need it.

    A grid is the paper's as soon as one of its models names a `paper_model`: then rows and columns are the paper's and
    whatever the grid leaves out is marked. Any other grid fills the same shapes with its own models, rates and points.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.runs = config.runs()
        for key in self.model_keys:
            name = config.models[key].paper_model
            if name is not None and name not in PAPER_MODELS:
                known = ", ".join(PAPER_MODELS)
                raise UserError(
                    f"models.{key}.paper_model: {name!r} is none of the paper's models ({known}); remove the key."
                )

    @cached_property
    def model_keys(self) -> list[str]:
        """Models of the grid, in its order."""
        return list(dict.fromkeys(run.model for run in self.runs))

    @cached_property
    def inits(self) -> dict[str, str]:
        """Initialisations by name with the label that tables print: the paper's two, then what else the grid has."""
        return {**INIT_LABELS, **{run.init: INIT_LABELS.get(run.init, run.init) for run in self.runs}}

    @cached_property
    def is_paper(self) -> bool:
        """Whether the paper's numbers stand beside this grid's."""
        return any(self.config.models[key].paper_model in PAPER_MODELS for key in self.model_keys)

    @cached_property
    def many_seeds(self) -> bool:
        """Whether any grid point runs more than once, so that a spread is shown."""
        return len({run.seed for run in self.runs}) > 1

    @property
    def has_pv(self) -> bool:
        """Whether the grid PV-tunes its models."""
        return self.config.pv is not None and self.config.pv.enabled

    def seeded(self, slot: Slot, init: str, point: Point | None = None) -> list[Run]:
        """The runs of a slot with one initialisation, one a seed; empty if the grid has none."""
        where = (slot.model, slot.geometry, init, point or slot.point)
        found = [run for run in self.runs if (run.model, run.geometry, run.init, _point(run)) == where]
        return sorted(found, key=lambda run: run.seed)

    def model(self, index: int) -> Slot:
        """The model that stands where the paper has its `index`-th, without rate or search point."""
        if self.is_paper:
            name = PAPER_MODELS[index]
            keys = [key for key in self.model_keys if self.config.models[key].paper_model == name]
            return Slot(keys[0], name) if keys else Slot(label=name, absent=f"no {name}")
        if index < len(self.model_keys):
            key = self.model_keys[index]
            return Slot(key, self.config.models[key].label)
        return Slot(absent=f"no {ORDINALS[index]} model")

    def further_models(self) -> list[Slot]:
        """Every model but the first at its low rate: the paper's two, or as many as the grid has, and at least two."""
        count = len(PAPER_MODELS) if self.is_paper else max(len(self.model_keys), len(PAPER_MODELS))
        return [self.at_rate(index, "low") for index in range(1, count)]

    def notes(self) -> list[str]:
        """What every page says about the weights of the grid's models, one line for each note."""
        found: dict[str, list[str]] = {}
        for key in self.model_keys:
            if self.config.models[key].remark:
                found.setdefault(self.config.models[key].remark, []).append(self.config.models[key].label)
        return [f"Weights of {', '.join(labels)}: {remark}" for remark, labels in found.items()]

    def geometries(self, model: str) -> list[Geometry]:
        """Geometries of a model in the order of the configuration."""
        return list(dict.fromkeys(run.geometry for run in self.runs if run.model == model))

    def points(self, model: str, geometry: Geometry | None) -> list[Point]:
        """Search points (b, e) of a model at a geometry, in the order of the configuration."""
        return list(dict.fromkeys(_point(run) for run in self.runs if (run.model, run.geometry) == (model, geometry)))

    def at_rate(self, index: int, rate: str) -> Slot:
        """Model `index` at its "low" or "high" rate and the standard search point.

        Outside the paper's grid low and high are the smallest and the largest rate of the model; where several
        geometries have that rate, the first of the configuration stands for it.
        """
        slot = self.model(index)
        if self.is_paper:
            geometry = PAPER_GEOMETRIES[rate]
            return Slot(slot.model, slot.label, geometry, PAPER_STANDARD, slot.absent)
        if slot.absent:
            return slot
        known = self.geometries(slot.model)
        low = min(known, key=lambda geometry: geometry.bits_per_parameter)
        high = max(known, key=lambda geometry: geometry.bits_per_parameter)
        if rate == "high" and high.bits_per_parameter == low.bits_per_parameter:
            return Slot(slot.model, slot.label, absent="no second rate")
        chosen = low if rate == "low" else high
        return Slot(slot.model, slot.label, chosen, self.standard(slot.model, chosen))

    def search_points(self) -> list[Slot]:
        """The first model at its low rate, once for each search point."""
        slot = self.at_rate(0, "low")
        points = list(PAPER_POINTS) if self.is_paper else self.points(slot.model, slot.geometry)
        return [Slot(slot.model, slot.label, slot.geometry, point, slot.absent) for point in points]

    def search_point(self, index: int) -> Slot:
        """The slot of the `index`-th search point."""
        points = self.search_points()
        return points[index] if index < len(points) else Slot(absent=f"no {ORDINALS[index]} search point")

    def standard(self, model: str, geometry: Geometry) -> Point:
        """The search point at which models and rates are compared: (8, 100) in the paper.

        Elsewhere it is the first that every model and rate has; failing that, the first of this model and geometry.
        """
        own = self.points(model, geometry)
        if self.is_paper:
            return PAPER_STANDARD if PAPER_STANDARD in own or not own else own[0]
        everywhere = [set(self.points(key, known)) for key in self.model_keys for known in self.geometries(key)]
        shared = [point for point in own if all(point in points for points in everywhere)]
        return (shared or own)[0]

    def sweeps(self) -> list[list[Slot]]:
        """Where a model has several geometries of one rate at one search point, these from the smallest rho upwards."""
        found: dict[tuple[str, float, Point], dict[Geometry, None]] = {}
        for run in self.runs:
            found.setdefault((run.model, run.geometry.bits_per_parameter, _point(run)), {})[run.geometry] = None
        return [
            [
                Slot(model, self.config.models[model].label, geometry, point)
                # rho of any layer is its weights over this.
                for geometry in sorted(geometries, key=lambda g: -g.group_size * g.codebook_size**g.num_codebooks)
            ]
            for (model, _, point), geometries in found.items()
            if len(geometries) >= SWEEP
        ]

    def domain(self, role: str, variant: str = "") -> tuple[str, PerplexitySet] | None:
        """Key and settings of the perplexity set of a role; of several, the one whose protocol is `variant`.

        In the paper's grid only that variant will do: `c4` and `c4_new` must never stand beside each other's numbers.
        """
        sets = {key: chosen for key, chosen in self.config.evaluation.perplexity.items() if chosen.role == role}
        exact = [key for key, chosen in sets.items() if chosen.text.protocol == variant]
        keys = exact if exact or (self.is_paper and variant) else list(sets)
        return (keys[0], sets[keys[0]]) if keys else None


def _point(run: Run) -> Point:
    return run.beam_width, run.max_epochs


def other_budgets(quantization: Quantization) -> list[str]:
    """What quantisation is told that differs from the paper's settings, as `kmeans.iterations 15 (paper 100)`."""
    given = {**dict(quantization.layer), "block_tuning": quantization.block_tuning}
    theirs = {**dict(LayerSettings()), "block_tuning": BlockTuningSettings()}
    return [
        f"{group}.{key} {value} (paper {getattr(theirs[group], key)})"
        for group, settings in given.items()
        for key, value in settings
        if value != getattr(theirs[group], key)
    ]
