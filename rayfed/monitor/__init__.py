"""Watching runs: a live page, and files for Prometheus and Grafana. Reads run folders, never writes to them."""

from rayfed.monitor.files import start_commands, write_files
from rayfed.monitor.serve import Server

__all__ = ["Server", "start_commands", "write_files"]
