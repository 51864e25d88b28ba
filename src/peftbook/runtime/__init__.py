"""Runtime: where and in which process a run is computed."""
