"""Stage distill: train one student, once for each of its seeds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compress.data.prepared import load_prepared
from compress.files import write_record
from compress.ranks import Ranks, ranks_here
from pipelines.finished_work import keep_training
from pipelines.layout import QUANTIZATION_AWARE, Layout
from pipelines.params import load_params
from pipelines.plans import DistillParams, Plan, Teachers, check_rounding, plan_of, tracked_plan
from pipelines.rounding import save_rounding
from pipelines.saved_networks import save_networks
from pipelines.torchrun import ranks_of_stage
from pipelines.tracking import Run
from pipelines.trained import Trained, write_training_files
from pipelines.training import Job, train


def run(root: Path, name: str) -> None:
    """Train the student `name` of params.yaml and leave its artifacts, its history and the id of its tracking run.

    Ranks that torchrun started train it together.
    """
    with ranks_of_stage() as ranks:
        _run(root, name, ranks)


def _run(root: Path, name: str, ranks: Ranks) -> None:
    layout = Layout(root)
    params = load_params(DistillParams, layout.params)
    data = load_prepared(layout.prepared)
    plan = plan_of(name, params, data, Teachers(params, data, layout))
    check_rounding(plan, ranks)
    with tracked_plan(root, plan, params.views) as tracked:
        trained = [_trained(job, plan, layout, tracked) for job in plan.jobs]
        for place, job in enumerate(plan.roundings):
            trained[place] = replace(trained[place], rounded=_rounded(job, plan, layout, tracked))
    if not ranks.is_first:
        return
    facts = {"student": name, "stage": "distill", "settings": plan.settings, **plan.lineage}
    write_training_files(layout.results(name), trained, facts)
    write_record(layout.run(name), {"run_id": tracked.id})
    keep_training(plan.work, name)  # until export has read the networks they are safe in their checkpoints


def _trained(job: Job, plan: Plan, layout: Layout, run: Run) -> Trained:
    trained, state = train(job, work=plan.work, run=run)
    if ranks_here().is_first:
        folders = {which: layout.trained(plan.name, job.seed, which) for which in ("last", "best")}
        save_networks(job, state, trained, folders)
    return trained


def _rounded(job: Job, plan: Plan, layout: Layout, run: Run) -> Trained:
    trained, state = train(job, work=plan.work, run=run)
    folder = layout.trained(plan.name, job.seed, QUANTIZATION_AWARE)
    save_rounding(job, state, trained, folder, made_of=layout.trained(plan.name, job.seed, "best"))
    return trained
