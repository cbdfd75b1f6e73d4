# The configuration as the library knows it, and what every rule shares.
#
# Reads:  config
# Gives:  CFG, the validated configuration; ORDER, the priorities of jobs; BASE, the folder of this workflow; names for
#         rules to use
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.settings.types import DeploymentMethod

BASE = Path(workflow.current_basedir).parent
sys.path.insert(0, str(BASE / "src"))

from oaem.errors import UserError
from oaem.planning import checks, layout
from oaem.planning import rules as planning
from oaem.planning.order import TUNING, Order
from oaem.runtime.jobs import sudden_end

planning.share_library(BASE / "src")

# For the cost plan alone: which GPU to reckon with.
GPU = config.pop("gpu", None)

try:
    CFG = checks.checked(config)
except UserError as error:
    raise WorkflowError(str(error))

planning.share_gpus(CFG)

GPU = GPU or ("h100" if CFG.device == "cuda" else "cpu")
SETTINGS = CFG.model_dump(mode="json")
TABLES = planning.table_files(CFG)
FIGURES = planning.figure_files(CFG)
ORDER = Order(CFG)
PAPER = planning.paper_files(BASE / "paper")


wildcard_constraints:
    run=layout.RUN_PATTERN,
    subject=layout.SUBJECT_PATTERN,
    model=r"[^/]+",
    stage="fp16|pre_pv|post_pv",
    start=r"\d+",
    stop=r"\d+",


def preflight(checked, run):
    jobs = list(run.dag.needrun_jobs())
    try:
        due = {str(file) for job in jobs for file in job.output}
        # With conda the jobs' packages are not those of this process.
        deployed = run.deployment_settings.deployment_method
        checks.preflight(checked, due, packages=DeploymentMethod.CONDA not in deployed)
        if any(job.rule.name == "pv_tune" for job in jobs):
            granted = run.global_resources.get("gpu").value
            checks.enough_gpus(checked, granted, run.local_exec)
    except UserError as error:
        raise WorkflowError(str(error))


def still_due(run):
    if "params" not in map(str, run.rerun_triggers):
        return []
    left = [job for job in run.dag.jobs if not run.dag.needrun(job)]
    return sorted(
        {job.rule.name for job in left if run.persistence.params_changed(job)}
    )


def tell_sudden_ends(run):
    logs = sorted({str(file) for job in run.scheduler.failed for file in job.log})
    for told in filter(None, (sudden_end(Path(file)) for file in logs)):
        logger.error(told)


def model_of(wildcards):
    return layout.model_manifest(
        layout.subject_model(wildcards.get("subject") or wildcards.run)
    )
