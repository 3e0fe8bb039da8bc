"""A run shared out among several that know nothing of each other: `--shard I/N`, then a merge."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from vitscope.indexer.base import Base
from vitscope.indexer.errors import OutputError
from vitscope.indexer.merge import merge
from vitscope.indexer.options import Options
from vitscope.indexer.plan import Shard
from vitscope.indexer.refusals import telling
from vitscope.indexer.run import made_ready, run_units
from vitscope.indexer.stage import stage
from vitscope.indexer.stages import Stages
from vitscope.indexer.work import Work, check_output, left_over, open_work, rows_of, sweep
from vitscope.store import layout, neighbours
from vitscope.store.generation import Generation
from vitscope.store.lock import writing, writing_together
from vitscope.store.publish import complete_publication, made_generation
from vitscope.store.text import counted


def index_shard(options: Options, shard: Shard, stages: Stages | None = None) -> int:
    """Index the units of one of several shards, and leave them to be merged; gives their number.

    Runs of the other shards may go on at the same time, on any machine that shares the folder.
    Raises as `vitscope.indexer.run.index` does, and `OutputError` where this shard is being done.
    """
    job = made_ready(options)
    with telling(options.out):
        options.out.mkdir(exist_ok=True)
        with ExitStack() as held:
            lock = held.enter_context(writing_together(options.out))
            check_output(options.out, append=options.append)
            work = Work(options.out, job.plan)
            with work.beginning():
                work.begin()
                mine = held.enter_context(work.held(shard))
                if made_generation(work.index, work.staged, job.plan.made):
                    raise OutputError(
                        f"The units in {options.out} are merged already; `vitscope merge "
                        f"{options.out}` completes the publication."
                    )
                stage(work, job.base)
            return run_units(options, job, work, (lock, mine), shard, stages or Stages())


def merge_shards(out: Path) -> str:
    """Publish the index whose units `index_shard` has done; gives the generation's name.

    Raises `OutputError` where there is no such run, or units are missing.
    """
    with telling(out):
        if left_over(out):
            with writing(out):
                sweep(out)
        open_work(out)
        neighbours.prepare()
        with writing(out):
            # Another merge may have been faster.
            work = open_work(out)
            name = complete_publication(work.index, work.staged, work.plan.made)
            if name is None:
                _require_finished(work)
                base = _base(work)
                name = merge(work, base, stage(work, base))
            work.remove()
            return name


def _base(work: Work) -> Base | None:
    name = work.plan.base
    return Base(Generation(work.index / layout.GENERATIONS / name)) if name else None


def _require_finished(work: Work) -> None:
    finished, damaged = work.finished(work.plan.units)
    for unit, why in damaged.items():
        print(f"{rows_of(unit)} damaged: {why}.", file=sys.stderr)
    missing = [str(unit.number) for unit in work.plan.units if unit not in finished]
    if missing:
        named = ", ".join(missing[:5]) + (" and others" if len(missing) > 5 else "")
        raise OutputError(
            f"{counted(len(missing), 'unit')} of {len(work.plan.units)} in {work.index} must still "
            f"be indexed (number {named}); run the commands of all shards again, then merge."
        )
