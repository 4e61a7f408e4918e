"""The samples of a dataset as columns, mapped from a file, and which of them a run takes."""
