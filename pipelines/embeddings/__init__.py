"""The vectors that a model gives of the samples of a data set: computed, stored as Parquet, and searched."""
