"""Image files, format by format: what a header says is honoured, or the file is refused by the name of the entry."""
