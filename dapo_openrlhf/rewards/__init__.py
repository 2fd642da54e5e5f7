"""What a response is worth: the verifier, and rewards in processes that can be killed. Runs without Ray."""
