"""The same small HTTP service in Python: `service.cc` with the runtime of this language.

    python service.py BUNDLE [PORT]
    curl --data-urlencode text="It works." http://127.0.0.1:8080/tasks/mood

Each request has a thread; all of them ask one session, and step together. `plc serve` is the server
for real use.
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl

from pl_compile.errors import PlcError, RequestError
from pl_compile.runtime import Request, Session

MOST_BYTES = 1 << 20


class Handler(BaseHTTPRequestHandler):
    """Answers forms."""

    session: Session

    def do_GET(self) -> None:
        """The names of the tasks."""
        self._say(200, "\n".join(self.session.tasks))

    def do_POST(self) -> None:
        """The answer of a task, whose fields are those of the form."""
        size = self.headers.get("Content-Length") or "0"
        length = int(size) if size.isdecimal() and len(size) < 10 else -1
        if not 0 <= length <= MOST_BYTES:
            self._say(413, f"at most {MOST_BYTES} bytes")
            return
        form = parse_qsl(self.rfile.read(length).decode(errors="replace"), keep_blank_values=True)
        task = self.path.removeprefix("/tasks/")
        try:
            [result] = self.session.generate([Request(task, dict(form))])
        except PlcError as error:
            self._say(400 if isinstance(error, RequestError) else 500, str(error))
            return
        self._say(200, result.text)

    def _say(self, status: int, text: str) -> None:
        body = (text + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serves the bundle that the command line names."""
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8080
    with Session.open(sys.argv[1]) as session:
        Handler.session = session
        print(f"http://127.0.0.1:{port}/tasks", file=sys.stderr)
        ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
