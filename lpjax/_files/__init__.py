"""Files that somebody else wrote, and files that are written whole or not at all."""
