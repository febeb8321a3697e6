"""Tracks runs in MLflow: parameters, metrics, pictures; metrics survive an outage of the tracking server."""
