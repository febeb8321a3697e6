"""The import: what a source offers, and how it becomes a folder of tars."""
