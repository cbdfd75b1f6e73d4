"""Print what the grid will cost and what is there already."""

import json
import logging
from typing import Any

from oaem.config.schema import parse
from oaem.planning.cost import plan
from oaem.runtime.jobs import run_job


def work(snakemake: Any) -> None:
    text = plan(parse(json.loads(snakemake.params.settings)), snakemake.params.gpu)
    for line in text.splitlines():
        logging.getLogger("oaem").info("%s", line)


if "snakemake" in globals():
    run_job(snakemake, work)
