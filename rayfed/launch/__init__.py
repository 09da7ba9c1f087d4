"""From a request to finished folders: preflight, start, progress, claims."""
