"""Offline evaluation: a saved model answers whole data sets, and its metrics are compared with baselines."""
