"""Runs on a cluster through Ray's Jobs API: submit, follow, stop, fetch. Needs only the port of the head's dashboard."""
