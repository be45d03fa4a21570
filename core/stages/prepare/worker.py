"""A process that shares in the preparation of data; `pool` starts it and says what to do."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

from modelwright.core.stages.prepare.pool import serve

if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
