"""The paper's Table 1 as an experiment, in the pattern of :mod:`dapo_openrlhf.bench`.

The *workload* is a configuration with its model, prompts and reward. The *arms* are the rungs of a ladder (``ladder.py``); a
trial is one run of a rung with one seed (``trials.py``) and comes to a *measurement*, all seeds of a rung to a *result*
(``result.py``). ``table.py`` and ``figures.py`` lay the results side by side, ``report.py`` writes them.
"""
