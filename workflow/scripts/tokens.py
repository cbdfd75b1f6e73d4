"""Cut a token set from its corpus."""

import json
from pathlib import Path
from typing import Any

from oaem.config.schema import Corpus, TokenSet
from oaem.corpora.tokens import token_set, write_tokens
from oaem.models.families import family_of
from oaem.models.load import load_config, load_tokenizer, require_vocabulary
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    asked = json.loads(snakemake.params.spec)
    folder = Path(snakemake.input.model).parent / "hf"
    spec, corpus = TokenSet.model_validate(asked["spec"]), Corpus.model_validate(asked["corpus"])
    bos_first = family_of(load_config(folder)).leans_on_bos
    tokens, protocol = token_set(spec, corpus, load_tokenizer(folder), asked["seed"], bos_first=bos_first)
    require_vocabulary(folder, tokens)
    write_tokens(Path(snakemake.output.tokens), tokens, protocol)


if "snakemake" in globals():
    run_job(snakemake, work)
