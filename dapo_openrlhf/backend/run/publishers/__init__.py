"""Who is told when in a weight sync, a file per transport (runs in the controller)."""
