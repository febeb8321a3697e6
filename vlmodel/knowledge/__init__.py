"""The ways in which a model can use facts, one file for each; ``model.knowledge.kind`` names the file."""
