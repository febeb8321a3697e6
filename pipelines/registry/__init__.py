"""The model registry: versions, the gate, and which version is the champion."""
