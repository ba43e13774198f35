"""Reads image files, one module for each format. A header entry is used, or the file is refused with its name."""
