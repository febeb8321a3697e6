"""The workflow of the job ``export``."""

from __future__ import annotations

from pathlib import Path

from pipelines.registry.export import export_model
from pipelines.workflows import models
from pipelines.workflows.workspace import Workspace
from vlmodel.config import ConfigError


def run(work: Workspace) -> Path:
    """Export the model for other programs. Returns the folder."""
    config = work.config.export
    if "://" in config.out:
        raise ConfigError(f"export.out={config.out!r} is a URI, and an export is a local folder; copy it afterwards")
    chosen = models.choose_model(work)
    out = Path(config.out).expanduser() if config.out else work.local_folder / "export"
    form = export_model(chosen.folder, config, out)
    folder = out if config.out else out / form
    print(f"{chosen.name} version {chosen.version} as {form}: {folder}", flush=True)
    return folder
