"""Faults that a test can order: their effect on a response, and the calls that they affect."""
