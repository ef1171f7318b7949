"""The webhook side: authenticate, write to the durable inbox, answer; then hand over to Prefect."""
