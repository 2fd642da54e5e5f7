"""The plan of a run as it stands in its report."""

from __future__ import annotations

from dapo_openrlhf.config.errors import ConfigError
from dapo_openrlhf.plan.after import WhatIf as Predictions
from dapo_openrlhf.plan.fit import Material
from dapo_openrlhf.plan.processes import Processes
from dapo_openrlhf.plan.reading import read_run
from dapo_openrlhf.plan.run_words import check, measured
from dapo_openrlhf.plan.splits import Advice, Candidate, advise
from dapo_openrlhf.plan.words import best_of_each
from dapo_openrlhf.report.page.past_run import PastRun
from dapo_openrlhf.report.page.what_if import Prospect, WhatIf


def what_if(run: PastRun, processes: Processes) -> WhatIf:
    """What ``dapo-openrlhf plan`` says of a run; where it refuses, why."""
    try:
        planned = read_run(run.folder)
    except ConfigError as error:
        return WhatIf(label=run.label, words=(f"no plan: {error}",))
    predictions = Predictions(Material(planned.life, planned.settings), processes)
    candidates = [*predictions.every_k(), *predictions.other_splits()]
    advice = advise(candidates)
    line, doubt = check(measured(planned.life), predictions.itself().prediction)
    chosen = advice.chosen
    recommended = (
        f"▶ recommended: async.max_staleness {chosen.prediction.max_staleness}, {chosen.split} (engines x tensor-parallel "
        f"size : trainer ranks): {advice.reason}."
    )
    notes = [*planned.notes, *([doubt] if doubt else [])]
    return WhatIf(
        label=run.label,
        prospects=[_prospect(one, advice) for one in best_of_each(candidates)],
        words=[recommended, f"{line}.", *(f"note: {note}." for note in notes)],
    )


def _prospect(one: Candidate, advice: Advice) -> Prospect:
    what = one.prediction
    return Prospect(
        max_staleness=what.max_staleness,
        split=str(one.split),
        step=what.step,
        interval=what.interval,
        tokens_per_second=what.tokens_per_second,
        engines_idle=what.engines_idle,
        trainer_idle=what.trainer_idle,
        mean_age=what.mean_age,
        waste=what.waste,
        of_bound=one.of_bound,
        chosen=one is advice.chosen,
    )
