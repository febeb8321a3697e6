"""Starts, updates and stops the service on a Ray cluster."""
