"""Answers for all studies of an open source: by the models of each fold, or by as many models as the time allows."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from cache_schema.documents import digest_of
from trainer.answers.answer import Answer
from trainer.predictor.job import Job
from trainer.predictor.limit import MEASURED, Limit, Outlook, load_decision, save_decision
from trainer.predictor.pace import Measured
from trainer.predictor.scans import Scans
from trainer.process.command import say


def announce(jobs: Sequence[tuple[Job, list[str]]]) -> None:
    """Says how many studies and models there are, and which studies the models have seen. jobs: each with its studies."""
    every = [id for _, ids in jobs for id in ids]
    counts: dict[str, int] = {}
    for job, _ in jobs:
        for stage, models in job.models.by_stage.items():
            counts[stage] = counts.get(stage, 0) + len(models)
    say(f"{len(every)} studies, {', '.join(f'{count} {stage} models' for stage, count in counts.items())}")
    alone = len(jobs) == 1  # models that hold a study out have seen its segmentation at most
    if alone and (seen := sorted(jobs[0][0].models.seen(every))):
        say(f"{len(seen)} of {len(every)} studies were seen in training by these models, first {seen[0]}")


def answers_of(jobs: Sequence[tuple[Job, list[str]]], scans: Scans, processes: int) -> dict[str, Answer]:
    """id -> answer of every study that can be read; those of an earlier command are kept. jobs: each with its studies."""
    found = {id: answer for job, ids in jobs for id, answer in _kept(job, scans, ids).items()}
    _tell_kept(found)
    quiet = False
    for job, ids in jobs:
        if left := [id for id in ids if id not in found]:
            job.run(scans, left, min(processes, len(left)), quiet=quiet)
            found |= _kept(job, scans, left)
            quiet = True
    return dict(sorted(found.items()))


def answers_in_time(job: Job, scans: Scans, processes: int, limit: Limit) -> tuple[Job, dict[str, Answer]]:
    """The job with the models that were decided on, and id -> answer of the studies that they answered in time.

    All models answer the first studies, which are measured. A smaller set then answers these again. The decision is kept: the
    same command goes on with the same models.
    """
    made_from = {
        "models": job.models.digest,
        "settings": dict(job.given),
        "studies": digest_of(scans.digests),
        "seconds": limit.seconds,
    }
    decision = load_decision(job.out, made_from)
    quiet = decision is None
    if decision is None:
        measured, left = _measured(job, scans, processes, limit)
        if measured.slices == 0:  # so few studies that all are answered, or no time for more
            return job, dict(sorted(_kept(job, scans, scans.ids).items()))
        sizes = [sum(scans.slices[id] for id in ids) for ids in (left, scans.ids)]
        outlook = Outlook(measured, sizes[0], sizes[1], processes, limit.left)
        decision = outlook.decide(job.models.leave_out)
        for line in outlook.lines(decision, len(job.models.every)):
            say(line)
        save_decision(job.out, decision, made_from)
    elif decision.left_out:
        say(f"limit: leaves out {', '.join(decision.left_out)}, as decided before")
    job = replace(job, models=job.models.without(decision.left_out))
    found = _kept(job, scans, scans.ids)
    _tell_kept(found)
    if left := [id for id in scans.ids if id not in found and id not in scans.refused]:
        job.run(scans, left, min(processes, len(left)), limit.pace(decision.rate), quiet=quiet)
        found |= _kept(job, scans, left)
    return job, dict(sorted(found.items()))


def _measured(job: Job, scans: Scans, processes: int, limit: Limit) -> tuple[Measured, list[str]]:
    """What the first unanswered studies take with all models, and the ids of those that are then left."""
    measured, done = Measured(), _kept(job, scans, scans.ids)
    left = [id for id in scans.ids if id not in done]
    while left and measured.slices == 0 and limit.left > 0:
        first, left = left[: (1 + MEASURED) * processes], left[(1 + MEASURED) * processes :]
        measured += job.run(scans, first, min(processes, len(first)), limit.pace())
    return measured, left


def _kept(job: Job, scans: Scans, ids: Collection[str]) -> dict[str, Answer]:
    """id -> answer of those that are answered by the job's models."""
    found = {id: job.answer(id, scans.digests[id]) for id in ids}
    return {id: answer for id, answer in found.items() if answer is not None}


def _tell_kept(found: Collection[str]) -> None:
    if found:
        say(f"{len(found)} studies are answered already")
