"""Local files, written such that a crash or a planted link does no harm."""
