"""Records that a service writes while it answers: corrections by people, comparisons of two models."""
