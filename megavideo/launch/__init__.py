"""From a cluster's settings and a run to job scripts: no torch, so that they are made and checked on a laptop."""
