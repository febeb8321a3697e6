"""One cycle of retraining: which tars are new, whether they are fit, and how far a cycle has come."""
