"""The asynchronous pipeline over ports: off-policy bound, queue, filter, loops, events, metrics. No Ray in here."""
