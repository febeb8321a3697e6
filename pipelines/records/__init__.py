"""What a service records while it answers: corrections by people, comparisons of two models."""
