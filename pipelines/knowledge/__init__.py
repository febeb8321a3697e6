"""The store of facts: sources of facts, their vectors, versions of the store, and linking texts to facts."""
