"""What goes wrong in a run, found and told: hangs, slow ranks, spikes, requests to stop."""
