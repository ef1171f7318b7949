"""What every part may use, and what knows no other part: cancellation, time limits, terminal text."""
