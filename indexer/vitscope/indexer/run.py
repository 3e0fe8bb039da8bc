"""One indexing run, from the options to the published generation."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from vitscope.indexer.job import Job, prepare
from vitscope.indexer.merge import merge
from vitscope.indexer.options import Options
from vitscope.indexer.plan import WHOLE, Shard
from vitscope.indexer.refusals import telling
from vitscope.indexer.stage import stage
from vitscope.indexer.stages import Stages
from vitscope.indexer.work import Work, check_output, left_over, rows_of, sweep
from vitscope.indexer.workers import run_here, run_side_by_side
from vitscope.store import neighbours
from vitscope.store.lock import BusyIndexError, writing
from vitscope.store.progress import Progress
from vitscope.store.publish import complete_publication


def index(options: Options, stages: Stages | None = None) -> str:
    """Index the pictures of `options.data`, publish in `options.out`, give the generation's name.

    Nothing is written before the options, the output folder, the pictures and the model have
    proved good. An unfinished run of the same plan is taken up where it was left. `stages` is told
    how long each stage took. Raises `IndexingError`, and `StoreError` where an index to append to
    is damaged or being written.
    """
    job = made_ready(options)
    with telling(options.out):
        options.out.mkdir(exist_ok=True)
        with writing(options.out) as lock:
            # Another run may have published while this one loaded its model.
            check_output(options.out, append=options.append)
            return _finish(options, job, lock, stages or Stages())


def made_ready(options: Options) -> Job:
    """The job of a run whose options and output folder have proved good, what it left out told."""
    options.check()
    if left_over(options.out):
        # What else is going on there will be told of later.
        with suppress(BusyIndexError), telling(options.out), writing(options.out):
            sweep(options.out)
    check_output(options.out, append=options.append)
    neighbours.prepare()
    job = prepare(options)
    for notice in (*job.source.notices, *job.left_out):
        print(notice, file=sys.stderr)
    return job


def _finish(options: Options, job: Job, lock: int, stages: Stages) -> str:
    """Do what is left of the run, and give the generation's name."""
    work = Work(options.out, job.plan)
    work.begin()
    name = complete_publication(work.index, work.staged, job.plan.made)
    if name is None:
        taken_over = stage(work, job.base)
        run_units(options, job, work, (lock,), WHOLE, stages)
        name = merge(work, job.base, taken_over)
    work.remove()
    return name


def run_units(
    options: Options, job: Job, work: Work, locks: Sequence[int], shard: Shard, stages: Stages
) -> int:
    """Do what is left of the units of a shard, and tell `stages`; gives how many it has."""
    plan = job.plan
    options = replace(options, batch_size=plan.batch_size)
    units = shard.of(plan.units)
    finished, damaged = work.finished(units)
    for unit, why in damaged.items():
        print(f"{rows_of(unit)} indexed again: {why}.", file=sys.stderr)
    left = [unit for unit in units if unit not in finished]
    total, done = (sum(map(plan.new_rows, some)) for some in (units, finished))
    progress = Progress("images", total, done=done)
    if options.ray and left:
        from vitscope.indexer.cluster import run_on_ray

        stages.add(run_on_ray(options, work, finished, left, progress))
    elif options.processes > 1 and len(left) > 1:
        stages.add(run_side_by_side(options, work, locks, finished, left, progress))
    else:
        stages.add(run_here(job, work, finished, left, progress))
    progress.finish()
    if left:
        print(stages, file=sys.stderr)
    return len(units)
