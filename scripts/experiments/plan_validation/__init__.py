"""Runs at several K, and how well `dapo-openrlhf plan RUN` predicts each of them from the log of another."""
