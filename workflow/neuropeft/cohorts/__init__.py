"""Cohorts: reading them, the scan index, labels, splits, and the simulated cohort."""
