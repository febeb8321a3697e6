"""The store of facts: sources, vectors, versions, and the linking of texts to facts."""
