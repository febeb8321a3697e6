"""Renders HTML pages from the Jinja2 templates in ``templates/``. A page is one file that needs no other file and no
network.
"""

from __future__ import annotations

import base64
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def render_page(template: str, **values: object) -> str:
    """Render a template as an HTML page. Every value is escaped; a name that the template uses and ``values`` lacks is
    an error.

    Args:
        template: name of a file in ``templates/``. Beside Jinja2's filters it has ``thousands`` (12,345) and
            ``jpeg_url`` (bytes of a JPEG as an address for ``<img src>``).
    """
    return _jinja_environment().get_template(template).render(**values)


@cache
def _jinja_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipelines.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["jpeg_url"] = lambda jpeg: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    return environment
