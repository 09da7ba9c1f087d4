"""Runs on disk and in object storage: folders, round log, snapshots; writes are atomic."""
