"""The page as a whole, section by section."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from dapo_openrlhf.config.typed import typed
from dapo_openrlhf.pipeline.events import Evaluated, SetEvaluated
from dapo_openrlhf.pipeline.metrics import LAPS, Row
from dapo_openrlhf.report.page.curves import (
    LEARNING,
    MONITORS,
    REASONS,
    SPEED,
    STALENESS,
    ages_of,
    charts,
    other_charts,
)
from dapo_openrlhf.report.page.drawing import legend, stacked
from dapo_openrlhf.report.page.markup import brief, percent, shown, table
from dapo_openrlhf.report.page.past_run import Answer, PastRun
from dapo_openrlhf.report.page.what_if import WhatIf, section
from dapo_openrlhf.report.progress import clock_time
from dapo_openrlhf.report.verdict import Verdict, verdict

MOST_CHARACTERS = 3000
MOST_ANSWERS = 6
"""Responses to one problem that are shown of a run: the first, the last and some between."""
OWN = ("run.name", "run.dir")
"""Settings in which any two runs differ."""

STYLE = """
:root{--ink:#1d1f21;--soft:#5f6368;--line:#d8dadd;--back:#fff;--box:#f6f7f8;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--ink:#e6e6e6;--soft:#a3a8ad;--line:#3c4043;--back:#16181a;--box:#202326}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:78rem;padding:1rem;font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--back)}
h1{font-size:1.4rem;margin:.2rem 0;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}
p{margin:.4rem 0;overflow-wrap:anywhere}
nav a{margin-right:.9rem;white-space:nowrap}a{color:inherit}
.charts{display:grid;gap:.8rem 1.2rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}
h3{font-size:1rem;margin:1.2rem 0 .3rem;overflow-wrap:anywhere}
figure{margin:0;break-inside:avoid;min-width:0}
figcaption{font-weight:600}figcaption span,figure p,.none{color:var(--soft);font-weight:400;font-size:.8rem}
svg{width:100%;height:auto;display:block}
svg text{font:10px system-ui,sans-serif;fill:var(--soft)}svg .grid{stroke:var(--line)}
.legend{position:sticky;top:0;background:var(--back);padding:.3rem 0;z-index:1}
.legend span{display:inline-block;margin-right:1rem;overflow-wrap:anywhere}.legend i{display:inline-block;width:.8rem;height:.8rem;margin-right:.3rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.87rem}
th,td{text-align:left;padding:.2rem .7rem .2rem 0;border-bottom:1px solid var(--line);vertical-align:top;unicode-bidi:isolate}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.damage{border-left:4px solid #d55e00;padding:.1rem .7rem;background:var(--box)}
.answers{display:grid;gap:.8rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr))}
article{border:1px solid var(--line);background:var(--box);padding:.5rem .7rem;min-width:0;break-inside:avoid}
article pre{margin:0}article h4{margin:0 0 .3rem;font-size:.85rem}
pre{margin:.6rem 0 0;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;overflow:auto;max-height:20rem;font-size:.8rem}
.right{border-left:4px solid #009e73}.wrong{border-left:4px solid #d55e00}
@media print{body{max-width:none;padding:0;font-size:10pt}nav{display:none}.legend{position:static}pre{max-height:none}
.charts,.answers{grid-template-columns:1fr 1fr}.wide{overflow:visible}.n{white-space:normal}*{print-color-adjust:exact}}
"""

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
"""
"""The page runs no script and loads nothing; browsers are told so, whatever a response holds."""


def page(runs: Sequence[PastRun], what_ifs: Sequence[WhatIf] = ()) -> str:
    """The page about these runs, at least one, and what other settings would have made of them."""
    title = ", ".join(run.label for run in runs)
    made = {name: make(runs) for name, make in SECTIONS.items()} | {WHAT_IF: section(what_ifs)}
    parts = [(name, made[name]) for name in ORDER if made[name]]
    links = " ".join(f'<a href="#s{place}">{shown(name)}</a>' for place, (name, _) in enumerate(parts))
    sections = "".join(
        f'<section id="s{place}"><h2>{shown(name)}</h2>{body}</section>' for place, (name, body) in enumerate(parts)
    )
    head = HEAD.format(title=shown(title, most=200), style=STYLE)
    return f"{head}<h1>{shown(title, most=1000)}</h1><nav>{links}</nav>{_damage(runs)}{sections}</body></html>\n"


def _damage(runs: Sequence[PastRun]) -> str:
    words = [f"{run.label}: {text}" for run in runs for text in run.damage]
    words += [f"{run.label}: no step is done yet" for run in runs if not run.rows]
    return f'<div class="damage">{"".join(f"<p>{shown(text)}</p>" for text in words)}</div>' if words else ""


def _names(runs: Sequence[PastRun]) -> str:
    return legend([run.label for run in runs])


# ---------------------------------------------------------------------------------------------------------- sections


def _overview(runs: Sequence[PastRun]) -> str:
    head = ("run", "state", "accuracy", "seconds", "tokens/s trained", "engines idle", "trainer idle", "age", "K")
    sentences = (f"<p>{shown(run.label)}: {shown(found.sentence)}.</p>" for run in runs if (found := _held_back(run)))
    return table(head, map(_line, runs), numbers_from=2) + "".join(sentences)


def _line(run: PastRun) -> list[str]:
    rows = list(run.rows.values())
    seconds = _total(rows, "seconds/step")
    tokens, found = _tokens(rows, "trained"), _held_back(run)
    measured = [one.accuracy for _, one in sorted(run.evaluations.items())]
    ages = [row["policy_age/mean"] for row in rows if "policy_age/mean" in row]
    return [
        shown(run.label),
        shown(run.state),
        " → ".join(dict.fromkeys(map(percent, (measured[0], measured[-1])))) if measured else "–",
        clock_time(seconds),
        brief(tokens / seconds) if seconds else "–",
        f"{found.engines_idle:.0%}" if found else "–",
        f"{found.trainer_idle:.0%}" if found else "–",
        brief(fmean(ages)) if ages else "–",
        "–" if run.max_staleness is None else str(run.max_staleness),
    ]


def _held_back(run: PastRun) -> Verdict | None:
    return verdict(list(run.rows.values()), max_staleness=run.max_staleness or 0)


def _evaluations(runs: Sequence[PastRun]) -> str:
    rows = [
        [shown(run.label), str(step), shown(name), *_figures(one), _estimates(measured, name)]
        for run in runs
        for step, measured in sorted(run.evaluations.items())
        for name, one in _sets(measured).items()
    ]
    if not rows:
        return "<p>No evaluation was made (eval.dataset).</p>"
    head: Sequence[str] = ("run", "step", "set", "accuracy", "problems", "responses", "errors", "estimates")
    if not any(measured.sets for run in runs for measured in run.evaluations.values()):
        head, rows = [*head[:2], *head[3:]], [[*row[:2], *row[3:]] for row in rows]
    return table(head, rows, numbers_from=len(head) - 5)


def _sets(measured: Evaluated) -> Mapping[str, Evaluated | SetEvaluated]:
    """The sets that have names, or the whole evaluation without one."""
    if measured.sets:
        return measured.sets
    return {"": measured}


def _figures(one: Evaluated | SetEvaluated) -> list[str]:
    return [percent(one.accuracy), str(one.problems), str(one.responses), str(one.errors)]


def _estimates(measured: Evaluated, name: str) -> str:
    """The numbers of one set of an evaluation besides its accuracy, in words."""
    begin = f"{name}/" if name else ""
    own = {
        number.removeprefix(begin): value
        for number, value in measured.estimates.items()
        if number.startswith(begin) and number != f"{name}/accuracy"
    }
    return ", ".join(f"{shown(number)} {percent(value)}" for number, value in own.items())


def _time(runs: Sequence[PastRun]) -> str:
    names = [f"seconds/{lap}" for lap in LAPS]
    return legend(LAPS) + _bars(runs, "Where each second of a step went", "seconds", names)


def _filter(runs: Sequence[PastRun]) -> str:
    names = [f"groups/{reason}" for reason in REASONS]
    rows = []
    for run in runs:
        made, kept, trained, surplus = (
            _tokens(run.rows.values(), kind) for kind in ("generated", "kept", "trained", "surplus")
        )
        counts = [_total(run.rows.values(), name) for name in names]
        share = f"{1 - trained / made:.0%}" if made else "–"
        rows.append([shown(run.label), *map(brief, (made, kept, trained, surplus)), share, *map(brief, counts)])
    head = ("run", "tokens generated", "kept", "trained", "surplus", "not trained", *REASONS)
    return legend(REASONS) + _bars(runs, "Groups by what the filter said", "groups", names) + table(head, rows)


def _ages(runs: Sequence[PastRun]) -> str:
    ages = ages_of(runs)
    if not ages:
        return ""
    bars = _bars(runs, "Trained groups of each age", "groups", [f"policy_age/{age}" for age in ages])
    return legend([f"age {age}" for age in ages]) + bars


def _bars(runs: Sequence[PastRun], title: str, unit: str, names: Sequence[str]) -> str:
    """A chart of bars for each run, all on one scale."""
    bars = {run.label: [[max(row.get(name, 0.0), 0.0) for name in names] for row in run.rows.values()] for run in runs}
    top = max((sum(bar) for of_run in bars.values() for bar in of_run), default=0.0)
    figures = (
        stacked(title if len(runs) == 1 else f"{title}: {label}", unit, names, of_run, top=top)
        for label, of_run in bars.items()
    )
    return f'<div class="charts">{"".join(figures)}</div>'


def _curves(group_charts: Callable[[Sequence[PastRun]], str]) -> Callable[[Sequence[PastRun]], str]:
    def section(runs: Sequence[PastRun]) -> str:
        drawn = group_charts(runs)
        return f'{_names(runs)}<div class="charts">{drawn}</div>' if drawn else ""

    return section


def _responses(runs: Sequence[PastRun]) -> str:
    return "".join(
        f"<h3>{shown(run.label)}</h3>{''.join(_problem(*of_one) for of_one in _by_problem(run.answers))}{_training(run)}"
        for run in runs
        if run.answers or run.samples
    )


def _training(run: PastRun) -> str:
    """Responses of training, each with its own prompt."""
    cards = "".join(_card(answer, f"{answer.prompt}\n{answer.response}") for answer in run.samples)
    return f'<h4>in training</h4><div class="answers">{cards}</div>' if cards else ""


def _by_problem(answers: Sequence[Answer]) -> Iterator[tuple[str, list[Answer]]]:
    for prompt in dict.fromkeys(answer.prompt for answer in answers):
        mine = [answer for answer in answers if answer.prompt == prompt]
        places = {round(place * (len(mine) - 1) / (MOST_ANSWERS - 1)) for place in range(MOST_ANSWERS)}
        yield prompt, [mine[place] for place in sorted(places)]


def _problem(prompt: str, answers: Sequence[Answer]) -> str:
    cards = "".join(_card(answer, answer.response) for answer in answers)
    asked = f'<pre dir="auto">{shown(prompt, most=MOST_CHARACTERS)}</pre>'
    return f'{asked}<p>label <bdi>{shown(answers[0].label, most=200)}</bdi></p><div class="answers">{cards}</div>'


def _card(answer: Answer, text: str) -> str:
    return (
        f'<article class="{answer.verdict.split()[0]}"><h4>step {answer.step}: {shown(answer.verdict)}, '
        f'{shown(answer.length)}</h4><pre dir="auto">{shown(text, most=MOST_CHARACTERS)}</pre></article>'
    )


def _happenings(runs: Sequence[PastRun]) -> str:
    items = "".join(f"<li>{shown(run.label)}: {shown(words)}</li>" for run in runs for words in run.notices)
    return f"<ul>{items}</ul>" if items else ""


def _settings(runs: Sequence[PastRun]) -> str:
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in OWN)
    values = {name: [_value(run, name) for run in runs] for name in names}
    differing = {name: of_runs for name, of_runs in values.items() if len(set(of_runs)) > 1}
    head = ("setting", *(shown(run.label) for run in runs))
    everything = table(head, ([shown(name), *map(shown, of_runs)] for name, of_runs in values.items()), numbers_from=99)
    rest = f"<details><summary>all settings</summary>{everything}</details>"
    if len(runs) == 1:
        return rest
    if not differing:
        return f"<p>The runs have the same settings.</p>{rest}"
    rows = ([shown(name), *map(shown, of_runs)] for name, of_runs in differing.items())
    return f"<p>Settings in which the runs differ:</p>{table(head, rows, numbers_from=99)}{rest}"


def _value(run: PastRun, name: str) -> str:
    return typed(run.settings[name]) if name in run.settings else "–"


def _total(rows: Iterable[Row], name: str) -> float:
    return sum(row.get(name, 0.0) for row in rows)


def _tokens(rows: Iterable[Row], kind: str) -> float:
    return sum(row.get(f"tokens_per_second/{kind}", 0.0) * row.get("seconds/step", 0.0) for row in rows)


SECTIONS: dict[str, Callable[[Sequence[PastRun]], str]] = {
    "Overview": _overview,
    "The four monitors": _curves(lambda runs: charts(runs, MONITORS)),
    "Learning": _curves(lambda runs: charts(runs, LEARNING)),
    "Evaluations": _evaluations,
    "Time": _time,
    "Speed": _curves(lambda runs: charts(runs, SPEED)),
    "Staleness": _curves(lambda runs: charts(runs, STALENESS)),
    "Ages": _ages,
    "Filter and waste": _filter,
    "Responses": _responses,
    "What happened": _happenings,
    "Settings": _settings,
    "All other curves": _curves(other_charts),
}
"""Sections about what was; one that has nothing to show is left out."""
WHAT_IF = "What if"
ORDER = [*SECTIONS]
ORDER.insert(ORDER.index("Filter and waste") + 1, WHAT_IF)
"""All sections in their order."""
