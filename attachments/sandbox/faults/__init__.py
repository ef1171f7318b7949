"""Faults that a test can order: what they do to an answer, and to which calls they happen."""
