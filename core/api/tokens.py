"""Prepared tokens on disk: a folder of Arrow files, one row an example, read through memory maps.

    prepare/train/
    ├── 00000.arrow     rows 0 to 4 of the folder      id │ source │ input_ids │ trained
    ├── 00001.arrow     rows 5 to 6: row numbers run across the shards, in the order of their names
    └── packs.arrow     only if rows are packed       rows: [0, 3], [1, 2, 6], [4, 5]

A pack is several examples that go through the model as one sequence. It holds row numbers, no tokens: where one
document ends and the next begins follows from the rows' lengths.

    pack 1    row 1       row 2   row 6
    tokens    a  b  c  d  e  f    g  h  i
    position  0  1  2  3  0  1    0  1  2
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from attrs import frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PACKS = "packs.arrow"


@frozen
class TokenRow:
    """One example as the model sees it.

    Attributes:
        id: the example's id.
        input_ids: its tokens, int32 `[tokens]`.
        trained: the label mask, bool `[tokens]`: whether the model is trained to predict token t from the tokens before
            it.
        source: the file that the example came from; "" if unknown.
    """

    id: str
    input_ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    source: str = ""


class TokenFolder:
    """A folder of Arrow IPC files with the columns `id` (string), `input_ids` (list<int32>), `trained` (list<bool>).

    A column `source` (string) is optional.

    Rows are read from the memory maps one at a time, so that memory does not grow with the folder. There may be no
    shard, and a shard may have no rows.

    Attributes:
        path: the folder.
        packs: the rows of each pack; None if the rows are not packed.
    """

    def __init__(self, path: Path) -> None:
        self._open(path, _shards(path))
        self.packs = Packs(path / PACKS) if (path / PACKS).exists() else None

    @classmethod
    def each_shard(cls, path: Path) -> Iterator[TokenFolder]:
        """The shards of a folder, each as a folder without packs: one is mapped at a time, however many there are."""
        for shard in _shards(path):
            alone = cls.__new__(cls)
            alone._open(path, [shard])  # noqa: SLF001 - it is one of these
            alone.packs = None
            yield alone

    def _open(self, path: Path, shards: Sequence[Path]) -> None:
        import pyarrow as pa

        self.path = path
        schema = pa.schema(
            [
                ("id", pa.string()),
                ("input_ids", pa.list_(pa.int32())),
                ("trained", pa.list_(pa.bool_())),
                ("source", pa.string()),
            ]
        )
        table: Any = pa.concat_tables([schema.empty_table(), *map(_mapped, shards)], promote_options="default")
        self._ids = table.column("id")
        self._input_ids = table.column("input_ids")
        self._trained = table.column("trained")
        self._sources = table.column("source")

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row: int) -> TokenRow:
        return TokenRow(
            id=self._ids[row].as_py(),
            input_ids=self._input_ids[row].values.to_numpy(),
            trained=self._trained[row].values.to_numpy(zero_copy_only=False),
            source=self._sources[row].as_py() or "",
        )

    def __iter__(self) -> Iterator[TokenRow]:
        return map(self.__getitem__, range(len(self)))

    def sources(self) -> list[str]:
        """The files that the rows came from, each once, in order of their names."""
        import pyarrow.compute as pc

        return sorted(name for name in pc.unique(self._sources).to_pylist() if name)

    def lengths(self) -> NDArray[np.int32]:
        """The number of tokens of each row, int32 `[rows]`."""
        import pyarrow.compute as pc

        lengths: NDArray[np.int32] = pc.list_value_length(self._input_ids).to_numpy()
        return lengths

    def trained_tokens(self) -> NDArray[np.int32]:
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
        """The highest token id in the folder; -1 where there is none."""
        import pyarrow.compute as pc

        return max(
            (pc.max(chunk.flatten()).as_py() for chunk in self._input_ids.chunks if len(chunk.flatten())), default=-1
        )


class Packs(Sequence["NDArray[np.int64]"]):
    """The packs of a folder of tokens: each is the row numbers in it, in the pack's order.

    Args:
        path: an Arrow IPC file with the column `rows` (list<int64>); no pack is empty.
    """

    def __init__(self, path: Path) -> None:
        self._rows: Any = _mapped(path).column("rows")

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, pack: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, pack: slice) -> list[NDArray[np.int64]]: ...
    def __getitem__(self, pack: int | slice) -> NDArray[np.int64] | list[NDArray[np.int64]]:
        if isinstance(pack, slice):
            return [self[index] for index in range(len(self))[pack]]
        rows: NDArray[np.int64] = self._rows[pack].values.to_numpy()
        return rows

    def sizes(self) -> NDArray[np.int32]:
        """The number of rows of each pack, int32 `[packs]`."""
        import pyarrow.compute as pc

        sizes: NDArray[np.int32] = pc.list_value_length(self._rows).to_numpy()
        return sizes

    def sums(self, values: NDArray[np.int32]) -> NDArray[np.int64]:
        """The sum of something over the rows of each pack, int64 `[packs]`; `values` has it of each row, `[rows]`."""
        import numpy as np

        sums = [np.zeros(0, dtype=np.int64)]
        for chunk in self._rows.chunks:
            starts = chunk.offsets.to_numpy()[:-1] - chunk.offsets[0].as_py()
            if len(starts):
                sums.append(np.add.reduceat(values[chunk.flatten().to_numpy()], starts, dtype=np.int64))
        return np.concatenate(sums)


def _shards(path: Path) -> list[Path]:
    # A folder that is not there is an error of its own, not a folder without rows.
    return sorted(file for file in path.iterdir() if file.suffix == ".arrow" and file.stem.isdigit())


def _mapped(path: Path) -> Any:
    """The table of an Arrow IPC file, in its memory map."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
