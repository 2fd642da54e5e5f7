"""Which losses and corrections survive stale rollouts: each of them at several ages, on one small task."""
