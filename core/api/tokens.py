"""Prepared tokens on disk: an Arrow file, one row an example, read through a memory map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@frozen
class TokenRow:
    """One example as the model sees it.

    Attributes:
        id: the example's id.
        input_ids: its tokens, int32 `[tokens]`.
        trained: which of them are learnt (the label mask), bool `[tokens]`; position t tells whether the model is
            taught to predict token t from those before it.
    """

    id: str
    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]


class TokenFile:
    """An Arrow IPC file with the columns `id` (string), `input_ids` (list<int32>) and `trained` (list<bool>).

    Rows are read from the memory map one at a time, so that memory does not grow with the file.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.path = path
        with pa.memory_map(str(path)) as source:
            self._table: Any = pa.ipc.open_file(source).read_all()
        self._ids = self._table.column("id")
        self._input_ids = self._table.column("input_ids")
        self._trained = self._table.column("trained")

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int) -> TokenRow:
        return TokenRow(
            id=self._ids[index].as_py(),
            input_ids=self._input_ids[index].values.to_numpy(),
            trained=self._trained[index].values.to_numpy(zero_copy_only=False),
        )

    def lengths(self) -> NDArray[np.int32]:
        """The number of tokens of each row, int32 `[rows]`."""
        import pyarrow.compute as pc

        lengths: NDArray[np.int32] = pc.list_value_length(self._input_ids).to_numpy()
        return lengths

    def supervised(self) -> NDArray[np.int32]:
        """The number of tokens that each row teaches, int32 `[rows]`: the trained ones but the first of the row.

        Nothing comes before a row's first token, so nothing is there to predict it from.
        """
        import numpy as np

        counts = [np.zeros(0, dtype=np.int32)]
        for chunk in self._trained.chunks:
            offsets = chunk.offsets.to_numpy() - chunk.offsets[0].as_py()
            trained = chunk.flatten().to_numpy(zero_copy_only=False)
            first = offsets[:-1][offsets[:-1] < offsets[1:]]
            before = np.concatenate(([0], np.cumsum(trained, dtype=np.int64)))
            count = before[offsets[1:]] - before[offsets[:-1]]
            count[offsets[:-1] < offsets[1:]] -= trained[first]
            counts.append(count.astype(np.int32))
        return np.concatenate(counts)

    def largest_token(self) -> int:
        """The highest token id in the file; -1 where there is none."""
        import pyarrow.compute as pc

        return max(
            (pc.max(chunk.flatten()).as_py() for chunk in self._input_ids.chunks if len(chunk.flatten())), default=-1
        )
