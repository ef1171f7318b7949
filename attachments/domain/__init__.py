"""Decisions that need no Prefect: what is selected, planned, still to be done, and which messages a backfill names."""
