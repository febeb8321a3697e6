"""Computes the vectors that a model gives for the samples of a data set, stores them as Parquet files, and searches
them.
"""
