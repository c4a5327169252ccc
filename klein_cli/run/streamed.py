"""Rows as they come -> jobs one by one: a pipe that never ends is drawn while it is written.

Nothing is known of what will come: there is no manifest, a row that cannot be used fails alone, and
names are given in the order of reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from klein_cli.errors import UsageError
from klein_cli.output.naming import Names
from klein_cli.output.png import check_writable
from klein_cli.prompts.columns import BadRow
from klein_cli.prompts.rows import Defaults, Row
from klein_cli.run.adapters import InputAdapters
from klein_cli.run.inputs import InputImages
from klein_cli.run.jobs import Job, Jobs
from klein_cli.run.plan import Output, Planner

Refuse = Callable[[int, UsageError], None]
"""Hears of the line of a row that cannot be drawn, and why."""


def jobs_as_they_come(
    rows: Iterable[Row | BadRow],
    *,
    defaults: Defaults,
    seed: int,
    output: Output,
    images: InputImages,
    adapters: InputAdapters | None,
    refuse: Refuse,
    check: Callable[[Job], None],
) -> Iterator[Job]:
    """The jobs of each row when it is read; image k (from 0) gets `seed` + k.

    `check` raises UsageError for a job that is not to be drawn. Raises UsageError when the output
    is not for several images, or its folder cannot be written in.
    """
    where = output.where.of(several=True)
    check_writable(where.folder)
    names = Names(where, overwrite=output.overwrite, today=output.today)
    planner = Planner(defaults, seed, None, where, names, output, images, adapters, one_by_one=True)
    for row in rows:
        try:
            for job in _jobs_of(row, planner):
                check(job)
                yield job
        except UsageError as error:
            refuse(row.line, error)


def _jobs_of(row: Row | BadRow, planner: Planner) -> Jobs:
    """Raises UsageError for a row that cannot be used."""
    if isinstance(row, BadRow):
        raise UsageError(row.message, row.hint)
    planner.plan.jobs = Jobs()
    planner.add(row)
    if planner.plan.refused:
        _, error = planner.plan.refused.pop()
        raise error
    return planner.plan.jobs
