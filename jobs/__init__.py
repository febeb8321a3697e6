"""Entry points: ``python -m jobs.NAME --config jobs/configs/X.toml [a.b=value ...]``, alone or submitted."""
