"""Which registered versions an evaluation is about: its addresses, resolved once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from modelwright.core.api import files
from modelwright.core.api.components import Registry
from modelwright.core.api.errors import ModelNotFoundError, ModelwrightError, SeveralErrors, UsageError
from modelwright.core.api.files import DamagedError
from modelwright.core.api.registry import ModelVersion
from modelwright.core.registry import naming, resolve

_ANEW = "remove it, and the models are looked up anew"


@frozen(kw_only=True)
class Chosen:
    """A model version, and the addresses that asked for it."""

    model: ModelVersion
    asked: tuple[str, ...]


@frozen(kw_only=True)
class Models:
    """The models of an evaluation.

    Attributes:
        registry: where they are.
        url: the registry's, for messages.
        asked: the addresses, or "all".
        pins: the file that remembers what they stood for when the evaluation began.
    """

    registry: Registry
    url: str
    asked: Sequence[str] | Literal["all"]
    pins: Path

    def choose(self, *, fresh: bool = False) -> list[Chosen]:
        """The versions that are meant, each once, whatever it is called; of all models the newest versions.

        An interrupted evaluation keeps the versions that it began with, though an alias may have moved since; not one
        that begins `fresh`.

        Raises:
            UsageError: an address is none; or several errors.
            ModelNotFoundError: there is no such model, or none at all.
            DamagedError: what an interrupted evaluation began with cannot be read.
        """
        pinned = None if fresh else self._pinned()
        return pinned or (self._newest() if self.asked == "all" else self._resolved())

    def pin(self, chosen: Sequence[Chosen], *, finished: bool) -> None:
        """Remember them; once `finished`, the addresses are resolved anew."""
        models = [
            {"name": one.model.name, "version": one.model.version, "digest": one.model.digest, "asked": list(one.asked)}
            for one in chosen
        ]
        files.write_json(self.pins, {"asked": self._asked, "finished": finished, "models": models})

    def forget(self) -> None:
        """Resolve the addresses anew next time."""
        self.pins.unlink(missing_ok=True)

    @property
    def _asked(self) -> Any:
        return self.asked if self.asked == "all" else list(self.asked)

    def _newest(self) -> list[Chosen]:
        newest: dict[str, ModelVersion] = {}
        for model in sorted(self.registry.find(), key=lambda model: (model.name, model.version)):
            newest[model.name] = model
        if not newest:
            raise ModelNotFoundError(f"there are no models to evaluate: the registry is empty in {self.url}")
        return [Chosen(model=model, asked=(model.name,)) for model in newest.values()]

    def _resolved(self) -> list[Chosen]:
        errors: list[ModelwrightError] = []
        names: dict[str, tuple[ModelVersion, list[str]]] = {}
        for address in self.asked:
            try:
                with naming(self.url):
                    model = resolve(self.registry, address)
            except (UsageError, ModelNotFoundError) as error:
                errors.append(error)
                continue
            names.setdefault(model.address, (model, []))[1].append(address)
        raise_all(errors)
        return [Chosen(model=model, asked=tuple(asked)) for model, asked in names.values()]

    def _pinned(self) -> list[Chosen] | None:
        pins = self._read_pins()
        if pins is None or pins["finished"] or pins["asked"] != self._asked:
            return None
        chosen = []
        for pin in pins["models"]:
            try:
                model = self.registry.get(pin["name"], pin["version"])
            except ModelNotFoundError:
                return None
            if model.digest != pin["digest"]:
                return None
            chosen.append(Chosen(model=model, asked=tuple(pin["asked"])))
        return chosen

    def _read_pins(self) -> Any:
        keys: Mapping[str, type | tuple[type, ...]] = {"asked": (str, list), "finished": bool, "models": list}
        pins = files.read_state(self.pins, keys, remedy=_ANEW)
        for pin in pins["models"] if pins else ():
            if not isinstance(pin, dict) or not pin.keys() >= {"name", "version", "digest", "asked"}:
                raise DamagedError(self.pins, "no models as they should be", remedy=_ANEW)
        return pins


def raise_all(errors: Sequence[ModelwrightError]) -> None:
    """Raise what was found: one error as it is, several as `SeveralErrors`."""
    if errors:
        raise errors[0] if len(errors) == 1 else SeveralErrors(errors)
