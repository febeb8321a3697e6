"""The pipeline around the model: data, training, evaluation, registry, serving."""
