"""Predicts runs: the pipeline's own code in virtual time, with models in place of engines, rewards and trainer.

Nothing of the queue, the filter, the staleness contract or the loops is written a second time, so a change of the
pipeline changes the prediction. ``scenario.py`` says what is to be predicted, ``simulation.py`` runs it,
``prediction.py`` holds the result, and ``bound.py`` what no schedule can beat.
"""
