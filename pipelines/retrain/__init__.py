"""Retraining cycles: which tars are new, how far their data have drifted, and which steps are done."""
