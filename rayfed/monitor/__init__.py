"""Watching runs: a page of rayfed's own, and files for Prometheus and Grafana. Reads, never writes to a run."""

from rayfed.monitor.files import start_commands, write_files
from rayfed.monitor.serve import Server

__all__ = ["Server", "start_commands", "write_files"]
