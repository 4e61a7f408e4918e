"""Stand-ins on a CPU that are worse than a GPU: collectives that complete late, and reads for which a device waits."""
