"""LightningModules, one model family a file."""
