"""Bytes outside memory: folders on any file system, retries, locks."""
