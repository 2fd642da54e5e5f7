"""The asynchronous pipeline over ports, without Ray: off-policy bound, queue, filter, loops, events, metrics."""
