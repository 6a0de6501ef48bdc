"""The playground: one page at `/` to try the tasks on, in a browser.

Its files are in `page/`, as they are sent: no build step, no framework. The page asks the same
routes as any client, so it needs no state here and no key of its own; it shows nothing that
`/v1/models` does not give to whoever has the key.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.responses import Response

from pl_compile.runtime.server.routes import Call

_FOLDER = Path(__file__).with_name("page")

# By path: the file, and its media type.
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/playground.css": ("playground.css", "text/css; charset=utf-8"),
    "/playground.js": ("playground.js", "text/javascript; charset=utf-8"),
    "/playground.svg": ("playground.svg", "image/svg+xml"),
}

# What the browser must refuse, whatever a text of a task, of a user or of an answer holds: scripts,
# styles and requests that are not this server's, frames around the page, and any text that a script
# would put into the page as HTML.
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)

_HEADERS = {
    "content-security-policy": "; ".join(_POLICY),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    # A browser asks each time whether its copy still holds: another version of the server has
    # another page at the same address.
    "cache-control": "no-cache",
}


def page_routes() -> dict[str, Callable[[Call], Awaitable[Response]]]:
    """What answers each path of the page; its files are read once, here."""
    return {
        path: _sends((_FOLDER / name).read_bytes(), kind) for path, (name, kind) in FILES.items()
    }


def _sends(content: bytes, kind: str) -> Callable[[Call], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "etag": tag}

    async def send(call: Call) -> Response:
        if tag in _tags(call.http.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return send


def _tags(listed: str) -> set[str]:
    """The tags of an `If-None-Match`; a proxy that compresses makes them weak."""
    return {tag.strip().removeprefix("W/") for tag in listed.split(",")}
