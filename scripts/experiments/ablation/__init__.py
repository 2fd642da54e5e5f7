"""The paper's Table 1 as an experiment: a ladder of runs, its table, its figures (layer 4)."""
