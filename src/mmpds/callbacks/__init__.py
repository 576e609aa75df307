"""Lightning callbacks that measure a run and keep what it predicted."""
