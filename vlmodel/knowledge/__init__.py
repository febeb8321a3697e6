"""The ways in which a model uses facts, one file each; ``model.knowledge.kind`` names the file."""
