"""Measurements that anybody can repeat, all in one pattern.

A *workload* is a model, prompts and a reward in a folder (``workload/``). An *arm* does one run of it (``arm.py``): this
pipeline at some K (``pipeline_arm.py``), or stock OpenRLHF (``stock/``). A run comes to a *measurement*, the repeats of an
arm to a *result* (``result.py``), and ``comparison.py`` lays results side by side. ``gpu_check/`` is a list of parts, each of
which measures one thing about an installation and holds it against what is wanted: its results are *checks*.
"""
