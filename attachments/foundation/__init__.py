"""Used by every part, imports none of them: cancellation, retry, time limits, timestamps, terminal text."""
