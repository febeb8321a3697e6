"""The routes of the web page, the documentation and their assets: the files of ``page/``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

_PAGE = Path(__file__).parents[1] / "page"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}


def router() -> APIRouter:
    """Create the routes / and /docs, and those of the files that these pages load."""
    routes = APIRouter(include_in_schema=False)
    files = {path.name: path.read_bytes() for path in sorted(_PAGE.iterdir()) if path.suffix in _MEDIA_TYPES}
    etags = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in files.items()}

    def send_file(name: str, request: Request) -> Response:
        if name not in files:
            raise HTTPException(404)
        headers = {"etag": etags[name], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == etags[name]:
            return Response(status_code=304, headers=headers)
        return Response(files[name], media_type=_MEDIA_TYPES[Path(name).suffix], headers=headers)

    @routes.get("/")
    async def demo_page(request: Request) -> Response:
        return send_file("index.html", request)

    @routes.get("/docs")
    async def docs_page(request: Request) -> Response:
        return send_file("docs.html", request)

    @routes.get("/page/{name}")
    async def page_asset(name: str, request: Request) -> Response:
        return send_file(name, request)

    @routes.get("/favicon.ico")
    async def favicon() -> Response:
        return RedirectResponse("page/icon.svg")

    return routes
