"""The warm Prefect worker: runs flows in its own process."""
