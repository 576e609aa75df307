"""The procedural people, organs, findings and films that the phantom is drawn from."""
