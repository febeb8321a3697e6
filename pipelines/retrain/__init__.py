"""Retraining cycles: finds new tars, measures how far their data have drifted, and records which steps are done."""
