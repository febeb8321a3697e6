"""Offline prediction and its figures: what a saved model answers over whole data sets, and what that is worth.

A room of its own, as training, promotion and retraining all judge models by it.
"""
