"""Offline evaluation: answers of a saved model over whole data sets, and their metrics beside baselines."""
