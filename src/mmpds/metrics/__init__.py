"""Metrics, operating points and their confidence intervals."""
