"""The checks of ``dapo-openrlhf check``, a file per noun: whether a run can start, found out in seconds."""
