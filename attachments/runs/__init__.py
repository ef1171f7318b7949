"""What the flows share and what knows Prefect: outcomes, errors, artifacts, child runs, continuation, watermarks."""
