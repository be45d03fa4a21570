"""The HTTP API beside gRPC, over the same models and requests: OpenAI's API, health, and the aliases.

- `app.py`: the paths, and who may call them
- `body.py`: from bytes to JSON to checked fields
- `openai_request.py`: /v1/chat/completions and /v1/completions, from JSON to the protocol's messages
- `responses.py`: the answers, whole or piece by piece
- `models.py`: /v1/models, and /admin/aliases with the switch of an alias
- `errors.py`: OpenAI's error objects
- `connection.py`: clients that disconnect, a server that shuts down, server-sent events
- `server.py`: uvicorn within the server's event loop
"""

from modelwright.grpc_server.gateway.server import HttpServer

__all__ = ["HttpServer"]
