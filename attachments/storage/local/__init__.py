"""Local files, written so that a crash or a planted symlink does no harm."""
