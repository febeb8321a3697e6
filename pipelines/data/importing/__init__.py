"""The import: the interface of importers, and writing a source's samples as a folder of tars."""
