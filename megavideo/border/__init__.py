"""The one way in for what comes from outside: files, names and texts that nobody here wrote.

Every file of a dataset, a checkpoint, a run directory or a clip list, every clip and every caption passes these
functions. They read regular files only and never block, hold sizes, depths and counts to bounds, and raise `Refused`
with the reason where something is not what it should be. Whoever reads says in one message which file it was.
"""
