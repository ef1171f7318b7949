"""The cap of an Emailgistics account, kept across hosts by leases on a Prefect concurrency limit."""
