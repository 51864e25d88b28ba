"""Judge: two runs' answers to a test row, side by side without their names, and which of them is better.

The address says which runs, and who judges. What is said is kept at once: a rater may stop and go on at any time.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from peftbook.core.errors import InputError
from peftbook.decision.judging import Judgement, first_is_left
from peftbook.studio.decisions import evaluations
from peftbook.studio.judging import Pair, measure_of, pair_of, rater_named
from peftbook.studio.pages.site import View, Visit, address, frame

CHOICES = {"left": "Left is better", "tie": "No difference", "right": "Right is better"}
FIELDS = ("first", "second", "rater")


def show(visit: Visit) -> dict[str, Any]:
    """Which runs, and the next row that this rater has not judged."""
    sets = [*evaluations(visit.studio, visit.project.id).values()]
    jobs = [job for jobs in sets for job in jobs if job.run.evaluation.n_generate]
    fields = {name: visit.query.get(name, "") for name in FIELDS}
    shown = {**frame(visit), "jobs": [(job.id, job.label) for job in jobs], "fields": fields, "choices": CHOICES}
    shown |= {"step": "decision", "row": None, "asked": None, "done": 0}
    if not all(fields.values()):
        usual = [job.id for job in (sets or [[]])[0][-2:]]
        return shown | {"fields": {name: fields[name] or one for name, one in zip_longest(FIELDS, usual, fillvalue="")}}
    try:
        pair, rater = pair_and_rater(visit)
    except InputError as error:
        return shown | {"trouble": error}
    left, asked = pair.waiting(visit.studio, rater)
    shown |= {"asked": asked, "done": asked - len(left), "same": len(pair.same), "measure": measure_of(*pair.ids)}
    if left:
        row, *texts = pair.examples[left[0]]
        sides = texts if first_is_left(pair.ids, row.id, rater) else texts[::-1]
        shown |= {"row": row, "sides": dict(zip(("Left", "Right"), sides, strict=True))}
    return shown


def pair_and_rater(visit: Visit) -> tuple[Pair, str]:
    """Those that the address names. Raises InputError for what is none."""
    first, second, rater = (visit.query.get(name, "") for name in FIELDS)
    return pair_of(visit.studio, visit.project.id, first, second), rater_named(rater)


def act(visit: Visit) -> str:
    """Keep what was said of a row, or take the last judgement of this rater back."""
    pair, rater = pair_and_rater(visit)
    project, form = visit.project.id, visit.typed
    if "back" in form:
        visit.studio.take_back(project, pair.ids, rater)
    else:
        example, said = form.get("example", ""), form.get("better", "")
        if said not in CHOICES or example not in pair.examples:
            raise InputError("That says nothing of a row of these runs: choose one of the three buttons.")
        first = "left" if first_is_left(pair.ids, example, rater) else "right"
        preferred = 0.5 if said == "tie" else float(said == first)
        visit.studio.judge(project, Judgement(*pair.ids, example, rater, preferred))
    return address(f"/projects/{project}/judge", **dict(zip(FIELDS, (*pair.ids, rater), strict=True)))


JUDGE = View("judge.html", show, act)
