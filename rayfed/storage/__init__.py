"""Runs on disk and in object storage: run folders, round logs, snapshots, uploads. What is tricky is in this folder's README."""
