"""What observes a run: its directory, its event log, trackers and progress. Nothing here can change a run."""
