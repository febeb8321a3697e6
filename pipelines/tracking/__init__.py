"""Tracking of runs in MLflow: parameters, metrics, pictures, and what waits while the server is away."""
