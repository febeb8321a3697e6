"""Tracking of runs in MLflow: parameters, metrics, pictures, and the metrics of an outage."""
