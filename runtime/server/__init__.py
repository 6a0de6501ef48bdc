"""The HTTP server: OpenAI's routes over a session. It needs the extra `serve`."""
