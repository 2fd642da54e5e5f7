"""What staleness costs: accuracy against K, corrections, and what becomes of late groups, on one small task."""
