"""The model registry: versions of a model, the gate for promotions, and which version is the champion."""
