"""The whole product on one machine: for `attachments demo`, and for the end-to-end tests and benchmarks."""
