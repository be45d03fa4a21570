"""The kinds of configuration files: run files and evaluation files. One reader reads both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic

from attrs import frozen

from modelwright.core.config.components import Components, Root, eval_components, run_components
from modelwright.core.config.convert import structure
from modelwright.core.config.errors import Finding, Invalid
from modelwright.core.config.homes import within
from modelwright.core.config.schema import EvalConfig, RunConfig

if TYPE_CHECKING:
    from modelwright.core.plugins import Plugins


@frozen(kw_only=True)
class Kind(Generic[Root]):
    """A kind of file.

    Attributes:
        root: the class of the whole.
        components: looks its components up.
        needs: what an empty file lacks, in words.
        variants: whether it may have `[variants]`.
    """

    root: type[Root]
    components: Callable[[Mapping[str, Any], Plugins], Components[Root]]
    needs: str
    variants: bool

    def build(self, values: Mapping[str, Any], plugins: Plugins | None) -> Root:
        """A configuration out of one merged tree; without plugins their options stay as they are.

        Raises:
            Invalid: with a finding for each thing that is wrong.
        """
        with within(self.root):
            return self._built(values, plugins)

    def _built(self, values: Mapping[str, Any], plugins: Plugins | None) -> Root:
        components = None if plugins is None else self.components(values, plugins)
        findings: list[Finding] = []
        try:
            config = structure(values if components is None else components.values, self.root)
        except Invalid as error:
            findings += error.findings
        findings += [one for one in (components.findings if components else ()) if one not in findings]
        if findings:
            raise Invalid(findings)
        return config if components is None else components.fill(config)


RUN: Kind[RunConfig] = Kind(
    root=RunConfig, components=run_components, needs="it needs name, [model], [data] and [train]", variants=True
)
EVAL: Kind[EvalConfig] = Kind(
    root=EvalConfig, components=eval_components, needs="it needs models and [[evaluate]]", variants=False
)
