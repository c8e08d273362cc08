"""Use cases: run, pull, exec, stop, rm … One engine behind every door; a door translates and decides nothing."""
