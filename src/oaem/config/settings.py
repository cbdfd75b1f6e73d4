"""What each numeric step may be told, with the paper's values as defaults.

These are plain values without files or tensors: the configuration is built of them, and the maths takes them as is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
RowWeights = Literal["uniform", "squared_scale"]


class Settings(BaseModel):
    """Base of every settings group: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _later(default: str, description: str) -> Any:
    """A setting younger than finished runs: at its default no job is told of it, so that those runs stay valid."""
    return Field(default, description=description, exclude_if=lambda value: value == default)


class KMeansSettings(Settings):
    """Residual k-means, the greedy initialisation (section 3.3)."""

    iterations: PositiveInt = Field(100, description="Lloyd iterations a codebook at most.")
    check_every: PositiveInt = Field(10, description="Iterations between two convergence checks.")
    max_vectors: PositiveInt | None = Field(
        None, description="Fit on a random sample of this many weight groups; null fits on all (the paper)."
    )
    row_weights: RowWeights = _later(
        "uniform",
        "What a weight group counts in its centroid. uniform: the same in every row (the paper). squared_scale: its "
        "row's squared scale, so that the error of the weights is lowered, not that of rows made equally long.",
    )


class OaemSettings(Settings):
    """OA-EM, the output-aware initialisation (section 3.4)."""

    rounds: PositiveInt = Field(3, description="EM rounds T.")
    steps: PositiveInt = Field(100, description="Adam steps a round in the M-step.")
    lr: PositiveFloat = Field(1e-4, description="Adam learning rate at the start of a round.")
    final_lr: PositiveFloat = Field(1e-5, description="Learning rate at the end of the cosine.")
    damping: Annotated[float, Field(ge=0)] = Field(
        0.01, description="Damping of the Hessian blocks as a share of the layer's mean diagonal."
    )
    row_weights: RowWeights = _later(
        "uniform",
        "What a weight group counts in the M-step. uniform: the same in every row (the paper). squared_scale: its "
        "row's squared scale, as in the layer's output error.",
    )


class CodebookSettings(Settings):
    """Continuous part of the alternating optimisation of one layer."""

    solver: Literal["adam", "cg"] = Field(
        "adam", description="adam: the paper's. cg: conjugate gradients on the same quadratic objective."
    )
    steps: PositiveInt = Field(100, description="Steps between two beam searches.")
    lr: PositiveFloat = Field(1e-4, description="Adam learning rate (solver adam).")
    beta1: Fraction = Field(0.0, description="Adam's first-moment decay.")
    beta2: Fraction = Field(0.95, description="Adam's second-moment decay.")
    relative_tolerance: Fraction = Field(
        0.01, description="Stop when an epoch lowers the layer's loss by less than this share."
    )


class BlockTuningSettings(Settings):
    """Tuning of a block's continuous parameters after each sequential group."""

    epochs: Count = Field(5, description="Passes over the calibration sequences a group; 0 turns block tuning off.")
    targets: Literal["block", "unquantized_model"] = _later(
        "block",
        "What a block's outputs are fitted to. block: its own for the inputs that it gets, as they were before the "
        "group was quantised (the paper). unquantized_model: those of the unquantised model, which saw no error of the "
        "blocks before; for sequential inputs alone.",
    )
    lr: PositiveFloat = Field(1e-5, description="Adam learning rate.")
    beta1: Fraction = Field(0.90, description="Adam's first-moment decay.")
    beta2: Fraction = Field(0.95, description="Adam's second-moment decay.")


class LayerSettings(Settings):
    """Everything the quantisation of one linear layer may be told, apart from the grid's own axes."""

    kmeans: KMeansSettings = KMeansSettings()
    oaem: OaemSettings = OaemSettings()
    codebooks: CodebookSettings = CodebookSettings()
