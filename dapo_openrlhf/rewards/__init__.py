"""The scoring of responses: the verifier, and rewards in processes that can be killed. Runs without Ray."""
