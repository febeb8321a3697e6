"""Folders on any file system, with retries; locks."""
