"""One self-contained HTML page from the numbers of a run."""
