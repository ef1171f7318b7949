"""Figures, each beside that of its peer, measured in the same run: `make bench`, `make bench PART=throughput`.

Everything runs on this machine and talks to loopback alone.
"""
