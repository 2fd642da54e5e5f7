"""Measurements that anybody can repeat, all with the same structure.

A *workload* is a model, prompts and a reward in a folder (``workload/``). An *arm* does one run of it (``arm.py``): this
pipeline at some K (``pipeline_arm.py``), or stock OpenRLHF (``stock/``). A run gives a *measurement*, the repeats of an
arm a *result* (``result.py``), and ``comparison.py`` compares results. ``gpu_check/`` consists of parts, each of which
measures one thing about an installation and compares it with what is wanted: its results are *checks*.
"""
