"""The whole product on one machine: for `attachments demo`, and for the tests and benchmarks of the road."""
